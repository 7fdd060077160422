// Package check proves that an accelerated image is its source: for every
// platform and layer, entry by entry.
//
// It reads both images whole. The tars run side by side, and beside them the
// table of contents (TOC) and the layer index, whose order is the tar's: a scanner
// reads the tar, a lazy runtime reads the TOC, our own nodes read the index, and only
// this comparison shows that all see the same files. Every chunk is read once more by its offset, as a runtime would.
//
// Memory does not depend on the image; the accelerated layer waits in a
// temporary file, because its TOC is at its end.
package check

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// DefaultMaxDifferences is how many differences a report lists by default.
const DefaultMaxDifferences = 20

// Options say what to check.
type Options struct {
	// Image is the accelerated image.
	Image string
	// Source is the image that it should equal; empty means the one that its
	// annotation names, in the same repository.
	Source string
	// PlainHTTP allows http://, Insecure any TLS certificate.
	PlainHTTP, Insecure bool
	// TempDir is where a layer waits; empty means the system's.
	TempDir string
	// MaxDifferences is how many differences are listed; 0 means
	// DefaultMaxDifferences. A layer with more is not read further.
	MaxDifferences int
	// Keychain, Transport, RetryWait and Silence are those of registry.Options.
	Keychain  authn.Keychain
	Transport http.RoundTripper
	RetryWait time.Duration
	Silence   time.Duration
	// Progress gets a line for each layer that was compared; it may be nil.
	Progress func(Compared)
}

// Compared tells of a layer that was compared.
type Compared struct {
	Platform string `json:"platform,omitempty"`
	// Layer is the accelerated layer's digest; LayerIndex counts from 1 to Layers.
	Layer      string `json:"layer"`
	LayerIndex int    `json:"layerIndex"`
	Layers     int    `json:"layers"`
	Entries    int    `json:"entries"`
	// Differences is how many were found so far in the whole image.
	Differences int `json:"differences"`
}

// Difference is one thing that is not as it should be.
type Difference struct {
	Platform string `json:"platform,omitempty"`
	// Layer is the accelerated layer's digest and LayerIndex its place from 1;
	// empty and 0 for what concerns the image.
	Layer      string `json:"layer,omitempty"`
	LayerIndex int    `json:"layerIndex,omitempty"`
	// Entry is the name in the tar, where it is about an entry.
	Entry string `json:"entry,omitempty"`
	// Field is what differs: "tar: mode" for accelerated tar against source tar,
	// "TOC: mode" and "index: mode" for the TOC and the layer index against the
	// accelerated tar, "config: env", ...
	Field string `json:"field"`
	Want  string `json:"want"`
	Got   string `json:"got"`
}

// String is the difference on one line.
func (d Difference) String() string {
	var b strings.Builder
	if d.Platform != "" {
		b.WriteString(d.Platform + ": ")
	}
	if d.Layer != "" {
		fmt.Fprintf(&b, "layer %d (%s): ", d.LayerIndex, d.Layer)
	}
	if d.Entry != "" {
		fmt.Fprintf(&b, "%q: ", d.Entry)
	}
	fmt.Fprintf(&b, "%s: want %s, got %s", d.Field, d.Want, d.Got)
	return b.String()
}

// Report is what a check found.
type Report struct {
	// Image and Source are full names; the digests are what was compared.
	Image        string `json:"image"`
	ImageDigest  string `json:"imageDigest"`
	Source       string `json:"source"`
	SourceDigest string `json:"sourceDigest"`
	// Platforms are those that were compared; Missing are those that the source
	// has and the accelerated image does not, which is no difference: somebody
	// may have wanted it so.
	Platforms []string `json:"platforms"`
	Missing   []string `json:"missing,omitempty"`
	// Layers were compared, Copied of them are the very same blobs.
	Layers int `json:"layers"`
	Copied int `json:"copied"`
	// Entries is the number of tar entries compared.
	Entries int `json:"entries"`
	// Bytes is the uncompressed size of what was compared.
	Bytes int64 `json:"bytes"`
	// Differences are the first that were found; Total is how many there were.
	Differences []Difference `json:"differences,omitempty"`
	Total       int          `json:"total"`
}

// Equal says whether the images are the same.
func (r *Report) Equal() bool { return r.Total == 0 }

// Check compares. An error means that it could not be done; differences are in
// the report, and no error.
func Check(ctx context.Context, o Options) (Report, error) {
	if o.MaxDifferences <= 0 {
		o.MaxDifferences = DefaultMaxDifferences
	}
	client, err := registry.New(registry.Options{
		PlainHTTP: o.PlainHTTP, Insecure: o.Insecure,
		Keychain: o.Keychain, Transport: o.Transport, RetryWait: o.RetryWait, Silence: o.Silence,
	})
	if err != nil {
		return Report{}, err
	}
	c := &checker{o: o, client: client, compared: make(map[[2]string]bool)}
	if err := c.run(ctx); err != nil {
		return c.report, fault.Local(err, "checking "+o.Image)
	}
	return c.report, nil
}

// checker is one run of Check.
type checker struct {
	o      Options
	client *registry.Client
	ours   name.Repository
	theirs name.Repository
	report Report
	// compared are pairs of layers, source and accelerated, that are done.
	compared map[[2]string]bool
}

// run resolves both images and compares them.
func (c *checker) run(ctx context.Context) error {
	ref, err := c.client.Parse(c.o.Image)
	if err != nil {
		return err
	}
	acc, err := c.fetch(ctx, ref)
	if err != nil {
		return err
	}
	from := acc.Annotations[image.AnnotationSourceDigest]
	if from == "" {
		return fault.New(fault.NotAccelerated, nil, "%s is no accelerated image: it does not say which image it was made from; make one with 'apparate convert'", ref)
	}
	if _, err := v1.NewHash(from); err != nil {
		return fault.New(fault.ImageInvalid, err, "%s does not say properly which image it was made from", ref)
	}
	source := name.Reference(ref.Context().Digest(from))
	if c.o.Source != "" {
		if source, err = c.client.Parse(c.o.Source); err != nil {
			return err
		}
	}
	src, err := c.fetch(ctx, source)
	if fault.KindOf(err) == fault.NotFound && c.o.Source == "" {
		return fault.New(fault.NotFound, nil, "the image that %s was made from (%s) is not in the same repository: name it with --source", ref, from)
	}
	if err != nil {
		return err
	}
	c.ours, c.theirs = ref.Context(), source.Context()
	c.report.Image, c.report.ImageDigest = ref.String(), acc.digest
	c.report.Source, c.report.SourceDigest = source.String(), src.digest
	return c.top(ctx, acc, src)
}

// differ notes a difference unless got is want.
func (c *checker) differ(at Difference, field string, want, got any) {
	w, g := fmt.Sprint(want), fmt.Sprint(got)
	if w == g {
		return
	}
	c.report.Total++
	if len(c.report.Differences) < c.o.MaxDifferences {
		at.Field, at.Want, at.Got = field, shorten(w), shorten(g)
		c.report.Differences = append(c.report.Differences, at)
	}
}

// full says that there is no room for more differences.
func (c *checker) full() bool { return c.report.Total >= c.o.MaxDifferences }

// shorten keeps a value fit for one line.
func shorten(s string) string {
	const most = 160
	if len(s) > most {
		s = s[:most] + "..."
	}
	if s == "" {
		return "nothing"
	}
	if strings.ContainsAny(s, "\n\r\t\x00\x1b") {
		return fmt.Sprintf("%q", s)
	}
	return s
}
