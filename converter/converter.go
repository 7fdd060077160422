// Package converter turns an image of a registry into an accelerated image of a
// registry: the same image, with layers that can be read piece by piece.
//
// # How an image is converted
//
//	source ── plan ──► layers, each once ──► configs, manifests ──► check ──► tag
//	          (get)    (download, encode,    (push by digest)     (HEAD)   (last)
//	                    push)
//
// Nothing that a user can see changes before the last step: what is pushed has
// no name until the tag is put. A run that fails or is killed leaves blobs that
// the registry's garbage collection removes, and no temporary files.
//
// # What is kept
//
// The config (environment, entry point, labels, history, fields that nobody here
// knows) except for rootfs.diff_ids; annotations, subject and platform of
// manifests and descriptors; the order of manifests in an index; attestations,
// signatures and other artifacts in an index, byte by byte, the reference of an
// attestation pointing to the new manifest. Media types become OCI's, because
// Docker's have no place for annotations.
//
// Layers are copied as they are where they cannot be accelerated: foreign
// layers, and those that [encode.UnsupportedError] speaks of.
//
// # What is refused
//
// An image that was accelerated already, an artifact that is no image, and a
// target tag with an image that this project did not make. See package fault for
// the kinds of errors.
package converter

import (
	"context"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// DefaultParallel is how many layers are worked on at once by default: while
// one downloads, another can be compressed.
const DefaultParallel = 2

// Options of a [Converter].
type Options struct {
	// Encode says how layers are written. Its TempDir and Workers are set from
	// the two fields below.
	Encode encode.Options
	// TempDir is where converted layers wait for their upload; empty means the
	// system's. It needs room for Parallel compressed layers.
	TempDir string
	// Workers is how many processors compress one layer; 0 means all.
	Workers int
	// Parallel is how many layers are worked on at once; 0 means DefaultParallel.
	Parallel int
	// Keychain has the credentials; nil means those of the docker config file.
	Keychain authn.Keychain
	// Transport carries requests; nil means a usual one.
	Transport http.RoundTripper
	// RetryWait is the first pause between tries; 0 means a second.
	RetryWait time.Duration
	// Silence is how long a registry may say nothing while it is read from;
	// 0 means registry.DefaultSilence.
	Silence time.Duration
}

// Converter converts images. It has no state: it may be used from several
// goroutines, and for the same image twice.
type Converter struct{ o Options }

// New makes a Converter.
func New(o Options) *Converter {
	if o.Parallel <= 0 {
		o.Parallel = DefaultParallel
	}
	if o.RetryWait <= 0 {
		o.RetryWait = time.Second
	}
	o.Encode.TempDir, o.Encode.Workers = o.TempDir, o.Workers
	return &Converter{o: o}
}

// Request says what to convert.
type Request struct {
	// Source is the image: "host/repository:tag", with "@digest" or both. With a
	// digest that very image is converted, wherever its tag has moved.
	Source string
	// SourceDigest is what Source has to be; when its tag has moved on, the
	// conversion is refused with fault.Superseded. Empty takes what is there.
	SourceDigest string
	// Target names the result; empty means Source's repository and its tag with
	// the suffix of accelerated images.
	Target string
	// Format is how layers are written; empty means encode.EStargz.
	Format encode.Format
	// Platforms limits an index to some platforms ("linux/arm64/v8"); none means
	// all. The result has only these.
	Platforms []string
	// PlainHTTP allows http://, Insecure any TLS certificate. Loopback addresses
	// need neither.
	PlainHTTP, Insecure bool
	// Force converts again what is up to date, without reusing layers, and
	// overwrites a target that somebody else made.
	Force bool
	// Predict gives an image to which no profile can be carried over one that is told
	// from it alone.
	Predict bool
	// Progress gets events as they happen, one at a time; it must not block for
	// long. It may be nil.
	Progress func(Event) `json:"-"`
}

// Observation is how source and target stand to each other.
type Observation struct {
	// Source and Target are the full names; Source has no digest where the
	// request had none.
	Source, Target string
	// SourceDigest is what Source is now; TargetDigest what Target is, empty
	// when there is none.
	SourceDigest, TargetDigest string
	// UpToDate says that Target was made from SourceDigest, in today's format
	// and for the platforms asked for.
	UpToDate bool
	// Reason says why the target is not up to date, or that it is.
	Reason Reason
}

// Reason is why a conversion is needed or not.
type Reason string

// The reasons.
const (
	ReasonUpToDate         Reason = "UpToDate"
	ReasonTargetMissing    Reason = "TargetMissing"
	ReasonSourceChanged    Reason = "SourceChanged"
	ReasonFormatChanged    Reason = "FormatChanged"
	ReasonPlatformsChanged Reason = "PlatformsChanged"
	ReasonTargetForeign    Reason = "TargetForeign" // and the request has Force
	ReasonForced           Reason = "Forced"
)

// Result is what a conversion did.
type Result struct {
	Observation
	// Platforms are those of the images that were converted, "linux/amd64".
	Platforms []string
	// Layers counts the distinct layers; the next three how each came about.
	// Copied layers cannot be started lazily.
	Layers, Converted, Reused, Copied int
	// BytesIn and BytesOut are what went over the network: layers down, and
	// layers up that the registry did not have.
	BytesIn, BytesOut int64
	// SourceSize and TargetSize are the compressed sizes of the distinct layers.
	SourceSize, TargetSize int64
	// Profiles is how many start-up profiles of the previous image were carried over,
	// and Predicted how many were told from the image alone.
	Profiles, Predicted int
	// Elapsed is how long it took.
	Elapsed time.Duration
}

// Observe says how things stand, and changes nothing. Its errors are those for
// which Convert would refuse: an unknown image, a target taken by somebody
// else, and so on.
func (c *Converter) Observe(ctx context.Context, r Request) (Observation, error) {
	j, err := c.begin(r)
	if err != nil {
		return Observation{}, err
	}
	if err := j.observe(ctx); err != nil {
		return Observation{}, fault.Local(err, "looking at "+r.Source)
	}
	return j.seen, nil
}

// Convert makes Target from Source. When the target is up to date it does
// nothing else than say so. It may be repeated at any time.
func (c *Converter) Convert(ctx context.Context, r Request) (Result, error) {
	start := time.Now()
	j, err := c.begin(r)
	if err == nil {
		err = j.run(ctx)
	}
	if err != nil {
		err = fault.Local(err, "converting "+r.Source)
		if j != nil {
			j.emit(Event{Type: Failed, Reason: string(fault.KindOf(err)), Error: err.Error()})
		}
		return Result{}, err
	}
	j.result.Elapsed = time.Since(start)
	return j.result, nil
}

// begin reads the request's names.
func (c *Converter) begin(r Request) (*job, error) {
	client, err := registry.New(registry.Options{
		PlainHTTP: r.PlainHTTP, Insecure: r.Insecure,
		Keychain: c.o.Keychain, Transport: c.o.Transport, RetryWait: c.o.RetryWait, Silence: c.o.Silence,
	})
	if err != nil {
		return nil, err
	}
	j := &job{o: c.o, req: r, client: client}
	if j.platforms, err = parsePlatforms(r.Platforms); err != nil {
		return nil, err
	}
	if err := j.name(); err != nil {
		return nil, err
	}
	return j, nil
}
