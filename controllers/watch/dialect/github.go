package dialect

import (
	"net/http"
	"strings"

	"github.com/apparate/apparate/api/v1alpha1"
)

// githubPackage is what GitHub says of a package ("Webhook events and payloads",
// events package and registry_package).
type githubPackage struct {
	Name        string `json:"name"`
	Namespace   string `json:"namespace"`
	PackageType string `json:"package_type"`
	Ecosystem   string `json:"ecosystem"`
	UpdatedAt   string `json:"updated_at"`
	Owner       struct {
		Login string `json:"login"`
	} `json:"owner"`
	PackageVersion struct {
		Version           string `json:"version"`
		ContainerMetadata *struct {
			Tag struct {
				Name   string `json:"name"`
				Digest string `json:"digest"`
			} `json:"tag"`
		} `json:"container_metadata"`
	} `json:"package_version"`
}

// parseGitHub reads the webhooks of GitHub Packages, which name their event in the
// header X-GitHub-Event and each delivery in X-GitHub-Delivery.
func parseGitHub(h http.Header, body []byte, o object) (Message, bool, error) {
	event := h.Get("X-GitHub-Event")
	if event == "" {
		return Message{}, false, nil
	}
	m := Message{Dialect: GitHub, Ping: event == "ping"}
	if event != "package" && event != "registry_package" {
		m.Ignored++
		return m, true, nil
	}
	if !o.has(event) {
		return m, true, &MalformedError{GitHub, event, "is missing"}
	}
	var n struct {
		Action          string        `json:"action"`
		Package         githubPackage `json:"package"`
		RegistryPackage githubPackage `json:"registry_package"`
	}
	if err := decode(GitHub, body, &n); err != nil {
		return m, true, err
	}
	p := n.Package
	if event == "registry_package" {
		p = n.RegistryPackage
	}
	kind := strings.ToUpper(p.PackageType)
	if n.Action != "published" && n.Action != "updated" || kind != "CONTAINER" && kind != "DOCKER" || p.PackageVersion.ContainerMetadata == nil {
		m.Ignored++
		return m, true, nil
	}
	owner := p.Namespace
	if owner == "" {
		owner = p.Owner.Login
	}
	digest := p.PackageVersion.ContainerMetadata.Tag.Digest
	if digest == "" && v1alpha1.ValidDigest(p.PackageVersion.Version) {
		digest = p.PackageVersion.Version
	}
	return m, true, m.add(Event{
		// The registry's paths are in lower case, names of owners need not be.
		ID: h.Get("X-GitHub-Delivery"), Repository: strings.ToLower(owner + "/" + p.Name),
		Tag: p.PackageVersion.ContainerMetadata.Tag.Name, Digest: digest,
	}, event+".name", event+".package_version.container_metadata.tag.name", event+".package_version.container_metadata.tag.digest")
}
