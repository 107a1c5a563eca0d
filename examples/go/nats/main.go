// Reads topic-created events from NATS JetStream through a durable consumer, which remembers on the
// server how far it is. With COUNT=n it ends after n events, else at Ctrl-C.
package main

import (
	"context"
	"errors"
	"log"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"topic-bridge/examples/go/cloudevent"
)

func main() {
	if err := consume(); err != nil {
		log.Fatal(err)
	}
}

func consume() error {
	worker, err := cloudevent.NewWorker()
	if err != nil {
		return err
	}
	connection, err := nats.Connect(cloudevent.Setting("NATS_URL", "nats://127.0.0.1:4222"))
	if err != nil {
		return err
	}
	defer connection.Close()
	stop, forget := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer forget()
	js, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	// From the oldest event on, each to be acknowledged by itself.
	config := jetstream.ConsumerConfig{
		Durable:   cloudevent.Setting("NATS_CONSUMER", "topic-consumer"),
		AckPolicy: jetstream.AckExplicitPolicy,
	}
	stream := cloudevent.Setting("NATS_STREAM", "CHAT_TOPICS")
	consumer, err := js.CreateOrUpdateConsumer(stop, stream, config)
	if err != nil {
		return err
	}
	for !worker.IsDone() {
		// One at a time, for what was fetched and not worked on at the end would come again only
		// after 30 s.
		message, err := consumer.Next(jetstream.FetchContext(stop))
		if stop.Err() != nil {
			return nil
		} else if errors.Is(err, nats.ErrTimeout) {
			continue
		} else if err != nil {
			log.Printf("%v: trying again", err)
			time.Sleep(time.Second)
			continue
		}
		event, err := read(message)
		if err != nil {
			log.Printf("not an event, not to come again: %v", err)
			err = message.Term()
		} else {
			worker.Work(event)
			// Waits until the server has it: what it does not have after 30 s, it delivers again.
			err = message.DoubleAck(context.Background())
		}
		if err != nil {
			log.Printf("not acknowledged, so it comes again: %v", err)
		}
	}
	return nil
}

func read(message jetstream.Msg) (cloudevent.Event, error) {
	attributes := map[string]string{}
	for name, values := range message.Headers() {
		if name, found := strings.CutPrefix(name, "ce-"); found {
			// Values are printable ASCII: what is not comes as %XX, a byte of UTF-8 each, and so does %.
			value, err := url.PathUnescape(values[0])
			if err != nil {
				return cloudevent.Event{}, err
			}
			attributes[name] = value
		}
	}
	return cloudevent.Read(message.Headers().Get("Content-Type"), attributes, message.Data())
}
