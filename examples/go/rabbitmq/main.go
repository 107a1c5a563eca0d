// Reads topic-created events from the queue that the bridge declares in RabbitMQ. Several of these share
// its events. With COUNT=n it ends after n events, else at Ctrl-C.
package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	amqp "github.com/rabbitmq/amqp091-go"

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
	connection, err := amqp.Dial(cloudevent.Setting("RABBITMQ_URL", "amqp://127.0.0.1:5672/%2f"))
	if err != nil {
		return err
	}
	defer connection.Close() // what was not acknowledged by then is given to the next consumer
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	// So many events are on their way at once; without it the whole queue would be.
	if err := channel.Qos(100, 0, false); err != nil {
		return err
	}
	queue := cloudevent.Setting("RABBITMQ_QUEUE", "chat.topic.created")
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}

	stop, forget := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer forget()
	for !worker.IsDone() {
		select {
		case <-stop.Done():
			return nil
		case delivery, isOpen := <-deliveries:
			if !isOpen {
				return errors.New("the connection or the queue is gone: start again")
			}
			event, err := read(delivery)
			if err != nil {
				log.Printf("not an event, rejected: %v", err)
				err = delivery.Reject(false)
			} else {
				worker.Work(event)
				err = delivery.Ack(false)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func read(delivery amqp.Delivery) (cloudevent.Event, error) {
	attributes := map[string]string{}
	for name, value := range delivery.Headers {
		if name, found := strings.CutPrefix(name, "ce-"); found {
			attributes[name], _ = value.(string)
		}
	}
	return cloudevent.Read(delivery.ContentType, attributes, delivery.Body)
}
