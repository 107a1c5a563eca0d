package main

import (
	"bytes"
	"context"
	"strings"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	amqp "github.com/rabbitmq/amqp091-go"
)

const prefix = "ce-"

var versions = spec.WithPrefix(prefix)

// A delivery as the SDK reads messages. It has no protocol for AMQP 0-9-1 of its own: this is what the RabbitMQ
// binding says.
type message struct {
	amqp.Delivery
	format  format.Format
	version spec.Version
}

func newMessage(delivery amqp.Delivery) *message {
	version, _ := delivery.Headers[versions.PrefixedSpecVersionName()].(string)
	return &message{delivery, format.Lookup(delivery.ContentType), versions.Version(version)}
}

func (m *message) ReadEncoding() binding.Encoding {
	switch {
	case m.format != nil:
		return binding.EncodingStructured
	case m.version != nil:
		return binding.EncodingBinary
	}
	return binding.EncodingUnknown
}

func (m *message) ReadStructured(ctx context.Context, writer binding.StructuredWriter) error {
	if m.format == nil {
		return binding.ErrNotStructured
	}
	return writer.SetStructuredEvent(ctx, m.format, bytes.NewReader(m.Body))
}

func (m *message) ReadBinary(_ context.Context, writer binding.BinaryWriter) error {
	if m.format != nil || m.version == nil {
		return binding.ErrNotBinary
	}
	if err := writer.SetAttribute(m.version.AttributeFromKind(spec.DataContentType), m.ContentType); err != nil {
		return err
	}
	for header, value := range m.Headers {
		name, isAttribute := strings.CutPrefix(header, prefix)
		if !isAttribute {
			continue
		}
		var err error
		if attribute := m.version.Attribute(header); attribute != nil {
			err = writer.SetAttribute(attribute, value)
		} else {
			err = writer.SetExtension(name, value)
		}
		if err != nil {
			return err
		}
	}
	return writer.SetData(bytes.NewReader(m.Body))
}

// GetAttribute and GetExtension let the SDK look at a message before it reads it.
func (m *message) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	if kind == spec.DataContentType {
		return m.version.AttributeFromKind(kind), m.ContentType
	}
	attribute := m.version.AttributeFromKind(kind)
	return attribute, m.Headers[attribute.PrefixedName()]
}

func (m *message) GetExtension(name string) any { return m.Headers[prefix+name] }

func (m *message) Finish(error) error { return nil }
