package dialect

import (
	"fmt"
	"net/http"
	"strings"
)

// parseDistribution reads the notifications of CNCF Distribution ("Work with
// notifications", media type application/vnd.docker.distribution.events.v2+json;
// v1 has the same fields).
func parseDistribution(_ http.Header, body []byte, o object) (Message, bool, error) {
	if !o.has("events") {
		return Message{}, false, nil
	}
	m := Message{Dialect: Distribution}
	var envelope struct {
		Events []struct {
			ID        string `json:"id"`
			Timestamp string `json:"timestamp"`
			Action    string `json:"action"`
			Target    struct {
				MediaType  string `json:"mediaType"`
				Digest     string `json:"digest"`
				Repository string `json:"repository"`
				Tag        string `json:"tag"`
			} `json:"target"`
		} `json:"events"`
	}
	if err := decode(Distribution, body, &envelope); err != nil {
		return m, true, err
	}
	for i, e := range envelope.Events {
		at := fmt.Sprintf("events[%d].", i)
		if e.Action == "" {
			return m, true, &MalformedError{Distribution, at + "action", "is missing"}
		}
		if e.Action != "push" || !isManifest(e.Target.MediaType) {
			m.Ignored++
			continue
		}
		err := m.add(Event{
			ID: e.ID, Time: stamp(e.Timestamp), Repository: e.Target.Repository, Tag: e.Target.Tag, Digest: e.Target.Digest,
		}, at+"target.repository", at+"target.tag", at+"target.digest")
		if err != nil {
			return m, true, err
		}
	}
	return m, true, nil
}

// isManifest says whether a media type is one of a manifest or index. Layers are
// pushed as octet streams.
func isManifest(t string) bool {
	return t == "" || strings.Contains(t, "manifest") || strings.Contains(t, "index")
}
