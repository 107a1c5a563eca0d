// Package cloudevent is what the consumers of all three brokers have in common: reading a CloudEvent in
// either encoding, and doing the work once for each event id.
package cloudevent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Repeats come soon after the first, so a few thousand ids are plenty.
const remembered = 10_000

// Event has what these programs show of a topic-created event.
type Event struct {
	ID   string `json:"id"`
	Data *Topic `json:"data"`
}

// Topic is part of an event's data.
type Topic struct {
	ID    string `json:"topic_id"`
	Name  string `json:"topic_name"`
	Owner string `json:"owner"`
}

// Read takes a message in either encoding. The attributes are those headers that have the binary
// encoding's prefix, without it; in the structured encoding they stand in the body.
func Read(contentType string, attributes map[string]string, body []byte) (Event, error) {
	var event Event
	var err error
	if strings.HasPrefix(contentType, "application/cloudevents+json") {
		err = json.Unmarshal(body, &event)
	} else {
		event.ID = attributes["id"]
		err = json.Unmarshal(body, &event.Data)
	}
	if err == nil && (event.ID == "" || event.Data == nil) {
		err = errors.New("it lacks its id or its data")
	}
	return event, err
}

// Setting is a variable of the environment.
func Setting(name, otherwise string) string {
	if value, found := os.LookupEnv(name); found {
		return value
	}
	return otherwise
}

// Worker does the work. A real service keeps the ids in the same transaction as what it does with the
// event: kept in memory, they are forgotten when it restarts.
type Worker struct {
	done  map[string]bool
	order []string // the same ids, the oldest first
	left  int      // how many events are left to take; negative for no end
}

// NewWorker takes as many events as COUNT says.
func NewWorker() (*Worker, error) {
	left, err := strconv.Atoi(Setting("COUNT", "-1"))
	return &Worker{done: map[string]bool{}, left: left}, err
}

// IsDone says whether COUNT events were taken.
func (w *Worker) IsDone() bool { return w.left == 0 }

// Work returns when the event may be acknowledged: not before.
func (w *Worker) Work(event Event) {
	if w.done[event.ID] {
		fmt.Println("skipped repeat", event.ID)
		return
	}
	fmt.Printf("%s topic_id=%q topic_name=%q owner=%q\n",
		event.ID, event.Data.ID, event.Data.Name, event.Data.Owner)
	w.done[event.ID] = true
	w.order = append(w.order, event.ID)
	if len(w.order) > remembered {
		delete(w.done, w.order[0])
		w.order = w.order[1:]
	}
	w.left--
}
