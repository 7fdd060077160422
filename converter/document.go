package converter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
)

// object is a JSON object of which only some fields are understood. Editing this
// instead of a struct keeps the others.
type object map[string]json.RawMessage

// set writes a field.
func (o object) set(key string, value any) error {
	b, err := marshal(value)
	if err != nil {
		return fmt.Errorf("write field %q: %w", key, err)
	}
	o[key] = b
	return nil
}

// marshal is json.Marshal without escaping for HTML, which would change strings
// that are only passed through.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// descriptor is a descriptor in a manifest or index (OCI image spec 1.1,
// "Content Descriptors"), with the object that it was read from.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls"`
	Annotations  map[string]string `json:"annotations"`
	Platform     *v1.Platform      `json:"platform"`
	ArtifactType string            `json:"artifactType"`
	raw          object
}

// UnmarshalJSON keeps the whole object beside the fields.
func (d *descriptor) UnmarshalJSON(b []byte) error {
	type plain descriptor
	if err := json.Unmarshal(b, (*plain)(d)); err != nil {
		return err
	}
	return json.Unmarshal(b, &d.raw)
}

// with returns a copy of the object that describes other content.
func (d *descriptor) with(mediaType, digest string, size int64, annotations map[string]string) (object, error) {
	o := maps.Clone(d.raw)
	if digest != d.Digest {
		// Both would speak of the old content.
		delete(o, "data")
		delete(o, "urls")
	}
	for k, v := range map[string]any{"mediaType": mediaType, "digest": digest, "size": size} {
		if err := o.set(k, v); err != nil {
			return nil, err
		}
	}
	if len(annotations) > 0 {
		if err := o.set("annotations", annotations); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// document is a manifest or an index.
type document struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       *descriptor       `json:"config"`
	Layers       []descriptor      `json:"layers"`
	Blobs        []descriptor      `json:"blobs"`
	Manifests    []descriptor      `json:"manifests"`
	Annotations  map[string]string `json:"annotations"`
	raw          object
}

// parseDocument reads a manifest or index; what names it in the error.
func parseDocument(b []byte, what string) (*document, error) {
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "the manifest of %s cannot be read: push the image again", what)
	}
	if err := json.Unmarshal(b, &d.raw); err != nil || d.raw == nil {
		return nil, fault.New(fault.ImageInvalid, err, "the manifest of %s is no JSON object: push the image again", what)
	}
	return &d, nil
}

// config is what is needed of an image's config.
type config struct {
	platform v1.Platform
	diffIDs  []string
	raw      object
}

func parseConfig(b []byte, what string) (*config, error) {
	var c struct {
		v1.Platform
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	bad := func(err error) error {
		return fault.New(fault.ImageInvalid, err, "the config of %s cannot be read: push the image again", what)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, bad(err)
	}
	out := &config{platform: c.Platform, diffIDs: c.RootFS.DiffIDs}
	if err := json.Unmarshal(b, &out.raw); err != nil || out.raw == nil {
		return nil, bad(err)
	}
	return out, nil
}

// withDiffIDs returns the config with other layers; everything else is kept.
func (c *config) withDiffIDs(ids []string) ([]byte, error) {
	var rootfs object
	if err := json.Unmarshal(c.raw["rootfs"], &rootfs); err != nil {
		return nil, fmt.Errorf("read rootfs: %w", err)
	}
	if err := rootfs.set("diff_ids", ids); err != nil {
		return nil, err
	}
	o := maps.Clone(c.raw)
	if err := o.set("rootfs", rootfs); err != nil {
		return nil, err
	}
	return marshal(o)
}

// staleAnnotations are prefixes of layer annotations that speak of the source's
// own compression and would be wrong, or refused beside eStargz's.
var staleAnnotations = [...]string{
	"io.containers.zstd-chunked.",
	"io.github.containers.zstd-chunked.",
	"containerd.io/snapshot/stargz/",
}

// layerAnnotations adds ours to those of the source layer.
func layerAnnotations(source, ours map[string]string) map[string]string {
	all := make(map[string]string, len(source)+len(ours))
	for k, v := range source {
		stale := false
		for _, prefix := range staleAnnotations {
			stale = stale || strings.HasPrefix(k, prefix)
		}
		if !stale {
			all[k] = v
		}
	}
	maps.Copy(all, ours)
	return all
}

// mark adds the annotations of an accelerated manifest or index.
func mark(annotations map[string]string, sourceDigest, format string) map[string]string {
	all := make(map[string]string, len(annotations)+2)
	maps.Copy(all, annotations)
	all[image.AnnotationSourceDigest] = sourceDigest
	all[image.AnnotationFormat] = format
	return all
}
