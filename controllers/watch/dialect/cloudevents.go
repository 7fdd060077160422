package dialect

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// cloudEvent is an event with its attributes (CloudEvents 1.0.2).
type cloudEvent struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Type        string          `json:"type"`
	Subject     string          `json:"subject"`
	Time        string          `json:"time"`
	Data        json.RawMessage `json:"data"`
}

// parseCloudEvents reads CloudEvents over HTTP ("HTTP Protocol Binding for
// CloudEvents 1.0.2"): structured, batched and binary.
func parseCloudEvents(h http.Header, body []byte, o object) (Message, bool, error) {
	kind, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	m := Message{Dialect: CloudEvents}
	var all []cloudEvent
	switch {
	case kind == "application/cloudevents-batch+json":
		if err := decode(CloudEvents, body, &all); err != nil {
			return m, true, err
		}
	case kind == "application/cloudevents+json", o.has("specversion", "type", "source", "id"):
		all = make([]cloudEvent, 1)
		if err := decode(CloudEvents, body, &all[0]); err != nil {
			return m, true, err
		}
	case h.Get("Ce-Specversion") != "":
		all = []cloudEvent{{
			SpecVersion: h.Get("Ce-Specversion"), ID: h.Get("Ce-Id"), Source: h.Get("Ce-Source"), Type: h.Get("Ce-Type"),
			Subject: h.Get("Ce-Subject"), Time: h.Get("Ce-Time"), Data: body,
		}}
	default:
		return m, false, nil
	}
	for i := range all {
		e := &all[i]
		for _, c := range []struct{ field, value string }{{"specversion", e.SpecVersion}, {"id", e.ID}, {"source", e.Source}, {"type", e.Type}} {
			if c.value == "" {
				return m, true, &MalformedError{CloudEvents, c.field, "is missing"}
			}
		}
		if !strings.HasPrefix(e.SpecVersion, "1.") {
			return m, true, &MalformedError{CloudEvents, "specversion", quoted(e.SpecVersion) + " is not 1.0"}
		}
		if err := e.read(&m); err != nil {
			return m, true, err
		}
	}
	return m, true, nil
}

// read adds what an event speaks of.
func (e *cloudEvent) read(m *Message) error {
	push := Event{ID: e.Source + "/" + e.ID, Time: stamp(e.Time)}
	switch {
	case strings.HasPrefix(e.Type, "harbor."):
		// Harbor's payload format CloudEvents, since 2.8: its own data inside.
		m.Dialect = HarborCloudEvents
		if e.Type != "harbor.artifact.pushed" {
			m.Ignored++
			return nil
		}
		var data harborData
		if err := decode(m.Dialect, e.Data, &data); err != nil {
			return err
		}
		return data.pushes(m, push, "data")
	case e.Type == "Microsoft.ContainerRegistry.ImagePushed":
		// Azure Event Grid ("Azure Container Registry as an Event Grid source").
		var data struct {
			Target acrTarget `json:"target"`
		}
		if err := decode(CloudEvents, e.Data, &data); err != nil {
			return err
		}
		return data.Target.push(m, push, "data.target")
	case strings.HasPrefix(e.Type, "dev.cdevents.artifact.published."):
		return e.readCDEvent(m, push)
	}
	var data struct {
		Repository, Tag, Digest any
	}
	if json.Unmarshal(e.Data, &data) != nil {
		m.Ignored++
		return nil
	}
	repository, ok := data.Repository.(string)
	tag, ok2 := data.Tag.(string)
	if !ok || !ok2 {
		m.Ignored++ // not of a kind that is known, and not of images as far as it shows
		return nil
	}
	push.Repository, push.Tag = repository, tag
	push.Digest, _ = data.Digest.(string)
	return m.add(push, "data.repository", "data.tag", "data.digest")
}

// readCDEvent reads the event "artifact published" of CDEvents, whose subject is
// a package URL: pkg:oci/app@sha256%3A…?repository_url=host/team/app&tag=v1
// (purl-spec, type oci).
func (e *cloudEvent) readCDEvent(m *Message, push Event) error {
	var data struct {
		Subject struct {
			ID string `json:"id"`
		} `json:"subject"`
	}
	if err := decode(CloudEvents, e.Data, &data); err != nil {
		return err
	}
	id := data.Subject.ID
	rest, ok := strings.CutPrefix(id, "pkg:oci/")
	if !ok {
		m.Ignored++ // another kind of package
		return nil
	}
	name, qualifiers, _ := strings.Cut(rest, "?")
	q, err := url.ParseQuery(qualifiers)
	if err != nil {
		return &MalformedError{CloudEvents, "data.subject.id", quoted(id) + " is no package URL"}
	}
	name, version, _ := strings.Cut(name, "@")
	if push.Digest, err = url.PathUnescape(version); err != nil {
		return &MalformedError{CloudEvents, "data.subject.id", quoted(id) + " is no package URL"}
	}
	push.Repository, push.Tag = name, q.Get("tag")
	if at := q.Get("repository_url"); at != "" {
		if _, path, ok := strings.Cut(strings.TrimPrefix(at, "https://"), "/"); ok {
			push.Repository = path
		}
	}
	return m.add(push, "data.subject.id", "data.subject.id", "data.subject.id")
}
