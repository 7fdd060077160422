// Package dialect understands the push notifications of registries. It is pure:
// bytes in, events out.
//
// The dialect is recognised from the headers and the shape of the body, each by
// fields that no other has. A notification is a hint and no more: nothing that it
// says is believed but the name of a tag that is worth a look.
package dialect

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/apparate/apparate/api/v1alpha1"
)

// Event is one push that a notification speaks of.
type Event struct {
	// ID is the sender's own name for the event; empty where it has none. It is
	// there against replays.
	ID string
	// Time is when it happened; zero where the sender does not say.
	Time time.Time
	// Repository is the path within the registry, without its host.
	Repository string
	Tag        string
	// Digest is "sha256:…"; empty where the sender does not say.
	Digest string
}

// Name is a dialect's.
type Name string

// The dialects.
const (
	Distribution      Name = "distribution"
	Harbor            Name = "harbor"
	HarborCloudEvents Name = "harbor-cloudevents"
	TCR               Name = "tcr"
	Quay              Name = "quay"
	DockerHub         Name = "dockerhub"
	GitHub            Name = "github"
	ACR               Name = "acr"
	ECR               Name = "ecr"
	CloudEvents       Name = "cloudevents"
)

// Names lists all dialects.
func Names() []Name {
	return []Name{Distribution, Harbor, HarborCloudEvents, TCR, Quay, DockerHub, GitHub, ACR, ECR, CloudEvents}
}

// Message is a notification that was understood.
type Message struct {
	Dialect Name
	// Pushes are those of tags, each tag once.
	Pushes []Event
	// Ignored counts events that are no push of a tag: pulls, deletions, scans,
	// layers, manifests without a tag.
	Ignored int
	// Ping says that the sender only tries whether somebody is there.
	Ping bool
}

// maxEvents is the most that one notification may speak of.
const maxEvents = 1000

// UnknownError is a notification in no dialect that is known.
type UnknownError struct{ Reason string }

// Error names what is known.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("the notification is in no dialect that is known (%v): %s", Names(), e.Reason)
}

// MalformedError is a notification in a known dialect with a field that is not as
// it must be.
type MalformedError struct {
	Dialect Name
	// Field is the field's path in the JSON.
	Field, Reason string
}

// Error is "dialect notification: field: reason".
func (e *MalformedError) Error() string {
	return fmt.Sprintf("%s notification: %s: %s", e.Dialect, e.Field, e.Reason)
}

// object is a JSON object with fields that are not read yet.
type object map[string]json.RawMessage

func (o object) has(keys ...string) bool {
	for _, k := range keys {
		if _, ok := o[k]; !ok {
			return false
		}
	}
	return true
}

// text is a string field; empty for one that is not there or is no string.
func (o object) text(key string) string {
	var s string
	if json.Unmarshal(o[key], &s) != nil {
		return ""
	}
	return s
}

// dialects are asked in this order: first those that a header tells. Each returns
// ok false for what is not its own.
var dialects = []func(h http.Header, body []byte, o object) (m Message, ok bool, err error){
	parseGitHub, parseCloudEvents, parseDistribution, parseECR, parseHarbor, parseDockerHub, parseACR, parseQuay,
}

// Parse reads a notification. The error is an *UnknownError or a *MalformedError.
func Parse(h http.Header, body []byte) (Message, error) {
	if !json.Valid(body) {
		return Message{}, &UnknownError{"the body is no JSON"}
	}
	var o object
	// A list is understood where a header says what it is.
	_ = json.Unmarshal(body, &o)
	for _, parse := range dialects {
		m, ok, err := parse(h, body, o)
		if err != nil {
			return Message{}, err
		}
		if ok {
			return m.tidy()
		}
	}
	return Message{}, &UnknownError{"its fields are those of none"}
}

// tidy bounds a message, and names each tag once: the last time counts.
func (m Message) tidy() (Message, error) {
	if len(m.Pushes)+m.Ignored > maxEvents {
		return Message{}, &MalformedError{m.Dialect, "events", fmt.Sprintf("there are more than %d", maxEvents)}
	}
	last := map[[2]string]int{}
	var kept []Event
	for _, e := range m.Pushes {
		k := [2]string{e.Repository, e.Tag}
		if i, ok := last[k]; ok {
			kept[i] = e
			continue
		}
		last[k] = len(kept)
		kept = append(kept, e)
	}
	m.Pushes = kept
	return m, nil
}

// add appends a push after a look at its names, which are in the fields given;
// one without a tag is ignored.
func (m *Message) add(e Event, repositoryField, tagField, digestField string) error {
	if e.Tag == "" {
		m.Ignored++
		return nil
	}
	for _, c := range []struct {
		ok           bool
		field, value string
		what         string
	}{
		{v1alpha1.ValidRepository(e.Repository), repositoryField, e.Repository, "no repository path"},
		{v1alpha1.ValidTag(e.Tag), tagField, e.Tag, "no tag"},
		{e.Digest == "" || v1alpha1.ValidDigest(e.Digest), digestField, e.Digest, "no digest"},
	} {
		if !c.ok {
			return &MalformedError{m.Dialect, c.field, fmt.Sprintf("%s is %s", quoted(c.value), c.what)}
		}
	}
	m.Pushes = append(m.Pushes, e)
	return nil
}

// decode reads the body of a dialect into its structure.
func decode(d Name, body []byte, into any) error {
	err := json.Unmarshal(body, into)
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return &MalformedError{d, te.Field, fmt.Sprintf("is a JSON %s and must be a %s", te.Value, te.Type.Kind())}
	}
	if err != nil {
		return &MalformedError{d, "body", err.Error()}
	}
	return nil
}

// unix is a time in seconds since 1970; zero for none.
func unix(seconds float64) time.Time {
	if seconds <= 0 || seconds > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}

// stamp reads a time of RFC 3339; zero for anything else.
func stamp(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// quoted shows a value that is wrong, and not too much of it.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}
