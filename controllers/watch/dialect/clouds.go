package dialect

import "net/http"

// parseACR reads the webhooks of Azure Container Registry ("Azure Container
// Registry webhook reference").
func parseACR(_ http.Header, body []byte, o object) (Message, bool, error) {
	if !o.has("id", "timestamp", "action") {
		return Message{}, false, nil
	}
	m := Message{Dialect: ACR, Ping: o.text("action") == "ping"}
	if o.text("action") != "push" {
		m.Ignored++
		return m, true, nil
	}
	var n struct {
		ID        string    `json:"id"`
		Timestamp string    `json:"timestamp"`
		Target    acrTarget `json:"target"`
	}
	if err := decode(ACR, body, &n); err != nil {
		return m, true, err
	}
	return m, true, n.Target.push(&m, Event{ID: n.ID, Time: stamp(n.Timestamp)}, "target")
}

// acrTarget is what ACR says of what was pushed, in webhooks and in Event Grid.
type acrTarget struct {
	MediaType  string `json:"mediaType"`
	Digest     string `json:"digest"`
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
}

func (t *acrTarget) push(m *Message, e Event, at string) error {
	e.Repository, e.Tag, e.Digest = t.Repository, t.Tag, t.Digest
	return m.add(e, at+".repository", at+".tag", at+".digest")
}

// parseECR reads the events of Amazon ECR as EventBridge sends them to an API
// destination ("Amazon ECR events and EventBridge", "ECR Image Action").
func parseECR(_ http.Header, body []byte, o object) (Message, bool, error) {
	if !o.has("detail-type", "detail", "source") {
		return Message{}, false, nil
	}
	m := Message{Dialect: ECR}
	var n struct {
		ID         string `json:"id"`
		DetailType string `json:"detail-type"`
		Source     string `json:"source"`
		Time       string `json:"time"`
		Detail     struct {
			Result         string `json:"result"`
			ActionType     string `json:"action-type"`
			RepositoryName string `json:"repository-name"`
			ImageDigest    string `json:"image-digest"`
			ImageTag       string `json:"image-tag"`
		} `json:"detail"`
	}
	if err := decode(ECR, body, &n); err != nil {
		return m, true, err
	}
	if n.Source != "aws.ecr" {
		return m, false, nil
	}
	if n.DetailType != "ECR Image Action" || n.Detail.ActionType != "PUSH" || n.Detail.Result != "SUCCESS" {
		m.Ignored++
		return m, true, nil
	}
	return m, true, m.add(Event{
		ID: n.ID, Time: stamp(n.Time), Repository: n.Detail.RepositoryName, Tag: n.Detail.ImageTag, Digest: n.Detail.ImageDigest,
	}, "detail.repository-name", "detail.image-tag", "detail.image-digest")
}
