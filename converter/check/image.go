package check

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
)

// annotationReferenceDigest is how BuildKit ties an attestation to its image.
const annotationReferenceDigest = "vnd.docker.reference.digest"

// maxDepth is how deep indexes may be nested.
const maxDepth = 4

// document is a manifest or index.
type document struct {
	digest      string
	raw         map[string]json.RawMessage
	Config      *v1.Descriptor    `json:"config"`
	Layers      []v1.Descriptor   `json:"layers"`
	Manifests   []v1.Descriptor   `json:"manifests"`
	Annotations map[string]string `json:"annotations"`
}

func (d *document) isIndex() bool {
	_, ok := d.raw["manifests"]
	return ok
}

func (c *checker) fetch(ctx context.Context, ref name.Reference) (*document, error) {
	m, err := c.client.Manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	d := &document{digest: m.Digest}
	if err := json.Unmarshal(m.Raw, d); err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "the manifest of %s cannot be read", ref)
	}
	if err := json.Unmarshal(m.Raw, &d.raw); err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "the manifest of %s cannot be read", ref)
	}
	return d, nil
}

// top compares two images or two indexes.
func (c *checker) top(ctx context.Context, acc, src *document) error {
	if !acc.isIndex() && !src.isIndex() {
		return c.image(ctx, "", acc, src)
	}
	return c.index(ctx, acc, src, 0)
}

// index pairs the manifests of two indexes.
func (c *checker) index(ctx context.Context, acc, src *document, depth int) error {
	if acc.isIndex() != src.isIndex() || depth > maxDepth {
		c.differ(Difference{}, "manifest: is an index", src.isIndex(), acc.isIndex() && depth <= maxDepth)
		return nil
	}
	c.marks(Difference{}, acc, src)
	c.fields(Difference{}, acc, src, "manifests")
	left := make(map[string]v1.Descriptor)
	for _, d := range src.Manifests {
		left[d.Digest.String()] = d
	}
	renamed := make(map[string]string) // source digest → accelerated digest
	for _, d := range acc.Manifests {
		from, err := c.child(ctx, d, left, renamed, depth)
		if err != nil {
			return err
		}
		renamed[from] = d.Digest.String()
		delete(left, from)
	}
	for _, d := range src.Manifests {
		if _, missing := left[d.Digest.String()]; missing {
			c.report.Missing = append(c.report.Missing, platformName(d.Platform, d.Digest.String()))
		}
	}
	return nil
}

// child compares one manifest of an index, and returns the digest of its source.
func (c *checker) child(ctx context.Context, d v1.Descriptor, left map[string]v1.Descriptor, renamed map[string]string, depth int) (string, error) {
	at := Difference{Platform: platformName(d.Platform, d.Digest.String())}
	if s, same := left[d.Digest.String()]; same {
		// Not an image: an attestation, a signature. Its own bytes are the same.
		c.descriptor(at, d, s, renamed)
		return d.Digest.String(), nil
	}
	m, err := c.fetch(ctx, c.ours.Digest(d.Digest.String()))
	if err != nil {
		return "", err
	}
	from := m.Annotations[image.AnnotationSourceDigest]
	s, known := left[from]
	if !known {
		c.differ(at, "manifest: source", "a manifest of the source's index", from)
		return from, nil
	}
	c.descriptor(at, d, s, renamed)
	src, err := c.fetch(ctx, c.theirs.Digest(from))
	if err != nil {
		return "", err
	}
	if m.isIndex() || src.isIndex() {
		return from, c.index(ctx, m, src, depth+1)
	}
	return from, c.image(ctx, at.Platform, m, src)
}

// descriptor compares what an index says about a manifest.
func (c *checker) descriptor(at Difference, acc, src v1.Descriptor, renamed map[string]string) {
	c.differ(at, "index: platform", platformName(src.Platform, ""), platformName(acc.Platform, ""))
	for _, k := range slices.Sorted(maps.Keys(src.Annotations)) {
		want := src.Annotations[k]
		if to, ok := renamed[want]; ok && k == annotationReferenceDigest {
			want = to
		}
		c.differ(at, "index: annotation "+k, want, acc.Annotations[k])
	}
}

// image compares two images of one platform.
func (c *checker) image(ctx context.Context, platform string, acc, src *document) error {
	at := Difference{Platform: platform}
	if acc.Config == nil || src.Config == nil {
		c.differ(at, "manifest: has a config", src.Config != nil, acc.Config != nil)
		return nil
	}
	c.marks(at, acc, src)
	c.fields(at, acc, src, "config", "layers", "artifactType")
	theirs, err := c.config(ctx, c.theirs, src.Config)
	if err != nil {
		return err
	}
	ours, err := c.config(ctx, c.ours, acc.Config)
	if err != nil {
		return err
	}
	if platform == "" {
		at.Platform = theirs.platform()
	}
	if at.Platform != "" {
		c.report.Platforms = append(c.report.Platforms, at.Platform)
	}
	c.configs(at, ours, theirs)
	n := len(src.Layers)
	c.differ(at, "manifest: number of layers", n, len(acc.Layers))
	c.differ(at, "config: number of diff_ids", n, len(ours.diffIDs))
	if len(acc.Layers) != n || len(ours.diffIDs) != n || len(theirs.diffIDs) != n {
		return nil
	}
	for i := range n {
		p := pair{acc: acc.Layers[i], src: src.Layers[i], accDiff: ours.diffIDs[i], srcDiff: theirs.diffIDs[i]}
		at.Layer, at.LayerIndex = p.acc.Digest.String(), i+1
		if err := c.layer(ctx, at, p); err != nil {
			return err
		}
		c.progress(at, n)
	}
	return nil
}

func (c *checker) progress(at Difference, layers int) {
	if c.o.Progress != nil {
		c.o.Progress(Compared{
			Platform: at.Platform, Layer: at.Layer, LayerIndex: at.LayerIndex, Layers: layers,
			Entries: c.report.Entries, Differences: c.report.Total,
		})
	}
}

// marks compares the annotations of two manifests: the source's are kept, and
// ours say where it comes from.
func (c *checker) marks(at Difference, acc, src *document) {
	c.differ(at, "manifest: annotation "+image.AnnotationSourceDigest, src.digest, acc.Annotations[image.AnnotationSourceDigest])
	format := image.Format
	if acc.Annotations[image.AnnotationFormat] == image.FormatZstd {
		format = image.FormatZstd
	}
	c.differ(at, "manifest: annotation "+image.AnnotationFormat, format, acc.Annotations[image.AnnotationFormat])
	for _, k := range slices.Sorted(maps.Keys(src.Annotations)) {
		c.differ(at, "manifest: annotation "+k, src.Annotations[k], acc.Annotations[k])
	}
}

// fields compares the fields of two manifests that a conversion has no business
// to change.
func (c *checker) fields(at Difference, acc, src *document, except ...string) {
	except = append(except, "mediaType", "annotations", "schemaVersion")
	c.objects(at, "manifest: ", acc.raw, src.raw, except)
}

// objects compares two JSON objects by value, field by field.
func (c *checker) objects(at Difference, prefix string, acc, src map[string]json.RawMessage, except []string) {
	keys := make(map[string]bool)
	for k := range acc {
		keys[k] = true
	}
	for k := range src {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if !slices.Contains(except, k) && !sameJSON(acc[k], src[k]) {
			c.differ(at, prefix+k, strings.TrimSpace(string(src[k])), strings.TrimSpace(string(acc[k])))
		}
	}
}

// sameJSON compares values, not spelling.
func sameJSON(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if a == nil || b == nil {
		return false
	}
	read := func(raw json.RawMessage) (v any, err error) {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber() // numbers above 2^53 count as well
		return v, d.Decode(&v)
	}
	x, errX := read(a)
	y, errY := read(b)
	return errX == nil && errY == nil && reflect.DeepEqual(x, y)
}

// config is an image's config.
type config struct {
	raw     map[string]json.RawMessage
	rootfs  map[string]json.RawMessage
	diffIDs []string
}

func (c *checker) config(ctx context.Context, repo name.Repository, d *v1.Descriptor) (*config, error) {
	b, err := c.client.ReadBlob(ctx, repo, d.Digest.String(), d.Size)
	if err != nil {
		return nil, err
	}
	var out config
	err = json.Unmarshal(b, &out.raw)
	if err == nil {
		err = json.Unmarshal(out.raw["rootfs"], &out.rootfs)
	}
	if err == nil {
		err = json.Unmarshal(out.rootfs["diff_ids"], &out.diffIDs)
	}
	if err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "the config %s of %s cannot be read", d.Digest, repo)
	}
	return &out, nil
}

// platform reads the config's platform; "" when it has none.
func (c *config) platform() string {
	text := func(k string) string {
		s, err := strconv.Unquote(string(c.raw[k]))
		if err != nil {
			return ""
		}
		return s
	}
	if text("os") == "" {
		return ""
	}
	return platformName(&v1.Platform{OS: text("os"), Architecture: text("architecture"), Variant: text("variant")}, "")
}

// configs compares everything but the diffIDs.
func (c *checker) configs(at Difference, acc, src *config) {
	c.objects(at, "config: ", acc.raw, src.raw, []string{"rootfs"})
	c.objects(at, "config: rootfs.", acc.rootfs, src.rootfs, []string{"diff_ids"})
}

// platformName is "os/architecture[/variant]", or what to say instead.
func platformName(p *v1.Platform, otherwise string) string {
	if p == nil || p.OS == "" || p.OS == "unknown" {
		return otherwise
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
