package dialect

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
)

// parseQuay reads the notification "Repository Push" of Quay ("Repository
// Notifications"). It has neither a time nor an id. updated_tags is a list; in
// older versions an object from tags to image ids.
func parseQuay(_ http.Header, _ []byte, o object) (Message, bool, error) {
	if !o.has("repository", "namespace", "docker_url") {
		return Message{}, false, nil
	}
	m := Message{Dialect: Quay}
	if !o.has("updated_tags") { // a build, a vulnerability, a mirror
		m.Ignored++
		return m, true, nil
	}
	var tags []string
	var old map[string]json.RawMessage
	switch {
	case json.Unmarshal(o["updated_tags"], &tags) == nil:
	case json.Unmarshal(o["updated_tags"], &old) == nil:
		tags = slices.Sorted(maps.Keys(old))
	default:
		return m, true, &MalformedError{Quay, "updated_tags", "must be a list of tags"}
	}
	for i, t := range tags {
		if err := m.add(Event{Repository: o.text("repository"), Tag: t}, "repository", fmt.Sprintf("updated_tags[%d]", i), ""); err != nil {
			return m, true, err
		}
	}
	return m, true, nil
}

// parseDockerHub reads the webhooks of Docker Hub ("Webhooks for automated
// builds"). pushed_at is in seconds.
func parseDockerHub(_ http.Header, body []byte, o object) (Message, bool, error) {
	if !o.has("push_data", "repository") {
		return Message{}, false, nil
	}
	var n struct {
		PushData struct {
			PushedAt float64 `json:"pushed_at"`
			Tag      string  `json:"tag"`
		} `json:"push_data"`
		Repository struct {
			RepoName string `json:"repo_name"`
		} `json:"repository"`
	}
	m := Message{Dialect: DockerHub}
	if err := decode(DockerHub, body, &n); err != nil {
		return m, true, err
	}
	return m, true, m.add(Event{Time: unix(n.PushData.PushedAt), Repository: n.Repository.RepoName, Tag: n.PushData.Tag},
		"repository.repo_name", "push_data.tag", "")
}
