// Reads what was published with the official CloudEvents SDK for Go, for the tests:
//
//	sdk kafka|rabbitmq|nats ADDRESS TOPIC|QUEUE|STREAM COUNT
//
// Prints each event, from the oldest on, as the SDK understands it: a line of JSON with its attributes and data.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/nats-io/nats.go"
	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	readers := map[string]func(address, name string, count int) error{"kafka": kafka, "rabbitmq": rabbitmq, "nats": jetstream}
	count, err := strconv.Atoi(os.Args[4])
	if err == nil {
		err = readers[os.Args[1]](os.Args[2], os.Args[3], count)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func show(message binding.Message) error {
	event, err := binding.ToEvent(context.Background(), message)
	if err != nil {
		return err
	}
	if err := event.Validate(); err != nil {
		return err
	}
	shown := map[string]any{
		"specversion": event.SpecVersion(), "id": event.ID(), "type": event.Type(), "source": event.Source(),
		"subject": event.Subject(), "time": event.Time().UTC().Format(time.RFC3339Nano),
		"datacontenttype": event.DataContentType(), "dataschema": event.DataSchema(),
		"data": json.RawMessage(event.Data()),
	}
	for name, value := range event.Extensions() {
		shown[name] = value
	}
	line, err := json.Marshal(shown)
	fmt.Println(string(line))
	return err
}

func kafka(address, topic string, count int) error {
	consumer, err := sarama.NewConsumer([]string{address}, sarama.NewConfig())
	if err != nil {
		return err
	}
	defer consumer.Close()
	partitions, err := consumer.Partitions(topic)
	if err != nil {
		return err
	}
	messages := make(chan *sarama.ConsumerMessage)
	for _, partition := range partitions {
		reader, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		if err != nil {
			return err
		}
		go func() {
			for message := range reader.Messages() {
				messages <- message
			}
		}()
	}
	for range count {
		if err := show(kafka_sarama.NewMessageFromConsumerMessage(<-messages)); err != nil {
			return err
		}
	}
	return nil
}

func rabbitmq(url, queue string, count int) error {
	connection, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	deliveries, err := channel.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		return err
	}
	for range count {
		if err := show(newMessage(<-deliveries)); err != nil {
			return err
		}
	}
	return nil
}

func jetstream(url, stream string, count int) error {
	connection, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	client, err := connection.JetStream()
	if err != nil {
		return err
	}
	subscription, err := client.SubscribeSync(">", nats.BindStream(stream), nats.OrderedConsumer())
	if err != nil {
		return err
	}
	for range count {
		message, err := subscription.NextMsg(time.Minute)
		if err != nil {
			return err
		}
		if err := show(nats_jetstream.NewMessage(message)); err != nil {
			return err
		}
	}
	return nil
}
