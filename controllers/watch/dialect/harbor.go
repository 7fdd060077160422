package dialect

import (
	"fmt"
	"net/http"
	"strings"
)

// harborData is what Harbor and TCR say of an event.
type harborData struct {
	Resources []struct {
		Digest string `json:"digest"`
		Tag    string `json:"tag"`
	} `json:"resources"`
	Repository struct {
		Name         string `json:"name"`
		Namespace    string `json:"namespace"`
		RepoFullName string `json:"repo_full_name"`
	} `json:"repository"`
}

// pushes adds what was pushed; at is the path of the data in the JSON.
func (d *harborData) pushes(m *Message, e Event, at string) error {
	field := at + ".repository.repo_full_name"
	e.Repository = d.Repository.RepoFullName
	if e.Repository == "" {
		field = at + ".repository.name"
		e.Repository = strings.TrimPrefix(d.Repository.Namespace+"/"+d.Repository.Name, "/")
	}
	for i, r := range d.Resources {
		each := fmt.Sprintf("%s.resources[%d]", at, i)
		e.Tag, e.Digest = r.Tag, r.Digest
		if strings.HasPrefix(e.Tag, "sha256:") {
			e.Tag = "" // a push by digest
		}
		if err := m.add(e, field, each+".tag", each+".digest"); err != nil {
			return err
		}
	}
	if len(d.Resources) == 0 {
		m.Ignored++
	}
	return nil
}

// parseHarbor reads the webhooks of Harbor since v2 in its own format ("Configure
// Webhook Notifications", payload format Default) and those of TCR Enterprise
// ("管理触发器", triggers), which keep the names of Harbor v1.
func parseHarbor(_ http.Header, body []byte, o object) (Message, bool, error) {
	if !o.has("type", "event_data") {
		return Message{}, false, nil
	}
	var n struct {
		Type      string     `json:"type"`
		OccurAt   float64    `json:"occur_at"`
		EventData harborData `json:"event_data"`
	}
	m := Message{Dialect: Harbor}
	// Harbor writes PUSH_ARTIFACT, TCR and Harbor v1 pushImage.
	kind := o.text("type")
	if kind != strings.ToUpper(kind) {
		m.Dialect = TCR
	}
	if kind != "PUSH_ARTIFACT" && kind != "pushImage" {
		if kind == "" {
			return m, true, &MalformedError{m.Dialect, "type", "is missing"}
		}
		m.Ignored++ // the data of other events have other shapes
		return m, true, nil
	}
	if err := decode(m.Dialect, body, &n); err != nil {
		return m, true, err
	}
	return m, true, n.EventData.pushes(&m, Event{Time: unix(n.OccurAt)}, "event_data")
}
