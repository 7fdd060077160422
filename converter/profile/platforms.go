package profile

import (
	"context"
	"encoding/json"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// maxPlatforms bounds an index.
const maxPlatforms = 100

// Platform is an image for one platform.
type Platform struct {
	// Name is "os/architecture[/variant]", "" where only the image's config says it.
	Name string
	Ref  name.Digest
}

// Platforms lists the platform manifests that ref leads to: itself, or what its
// index lists.
func Platforms(ctx context.Context, client *registry.Client, ref name.Reference) ([]Platform, error) {
	m, err := client.Manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Manifests []struct {
			Digest   string       `json:"digest"`
			Platform *v1.Platform `json:"platform"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(m.Raw, &doc); err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "the manifest of %s cannot be read", ref)
	}
	if doc.Manifests == nil {
		return []Platform{{Ref: ref.Context().Digest(m.Digest)}}, nil
	}
	var all []Platform
	for _, d := range doc.Manifests[:min(len(doc.Manifests), maxPlatforms)] {
		// Attestations have an unknown platform.
		if d.Platform == nil || d.Platform.OS == "" || d.Platform.OS == "unknown" {
			continue
		}
		p := Platform{Name: d.Platform.OS + "/" + d.Platform.Architecture, Ref: ref.Context().Digest(d.Digest)}
		if v := d.Platform.Variant; v != "" {
			p.Name += "/" + v
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.NotImage, nil, "%s lists no image for a platform", ref)
	}
	return all, nil
}
