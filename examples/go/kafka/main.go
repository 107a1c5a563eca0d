// Reads topic-created events from Kafka as a member of a consumer group, and goes on where the group
// was. With COUNT=n it ends after n events, else at Ctrl-C.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"

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
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(cloudevent.Setting("KAFKA_BROKERS", "127.0.0.1:9092"), ",")...),
		kgo.ConsumerGroup(cloudevent.Setting("KAFKA_GROUP", "topic-consumer")),
		kgo.ConsumeTopics(cloudevent.Setting("KAFKA_TOPIC", "chat.topic.created")),
		// A new group begins with the oldest event that the topic still has.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		// Offsets are committed in the background, but none before MarkCommitRecords says that the
		// work is done.
		kgo.AutoCommitMarks(),
		// No partition goes to another member between reading and working.
		kgo.BlockRebalanceOnPoll(),
	)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance() // leaves the group

	stop, forget := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer forget()
	for !worker.IsDone() && stop.Err() == nil {
		fetches := client.PollRecords(stop, 100)
		fetches.EachError(func(topic string, partition int32, err error) {
			if stop.Err() == nil {
				log.Printf("%s/%d: %v: trying again", topic, partition, err)
			}
		})
		for _, record := range fetches.Records() {
			if worker.IsDone() || stop.Err() != nil {
				break
			}
			if event, err := read(record); err != nil {
				log.Printf("not an event, passed over: %v", err)
			} else {
				worker.Work(event)
			}
			client.MarkCommitRecords(record)
		}
		client.AllowRebalance()
	}
	return client.CommitMarkedOffsets(context.Background())
}

func read(record *kgo.Record) (cloudevent.Event, error) {
	contentType, attributes := "", map[string]string{}
	for _, header := range record.Headers {
		if header.Key == "content-type" {
			contentType = string(header.Value)
		} else if name, found := strings.CutPrefix(header.Key, "ce_"); found {
			attributes[name] = string(header.Value)
		}
	}
	return cloudevent.Read(contentType, attributes, record.Value)
}
