// Package profile makes start-up profiles of samples and keeps them in the
// registry, beside the images that they are of (package api/profile).
//
//	samples ── Merge ──► plan ── Build ──► table, pack ── Push ──► an artifact that refers to the image
//
// Samples come from nodes, and a node may lie. So a plan has only chunks that
// the image's own tables of contents list, a pack has only content that has the
// digest it is listed with, and everything is bounded.
package profile

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/errgroup"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

const (
	mediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeIndex    = "application/vnd.oci.image.index.v1+json"
)

// Limits of an image that a profile is made for.
const (
	maxLayers = 1024
	// maxTOC is the longest compressed TOC that is read.
	maxTOC = 256 << 20
	// maxMember is the longest gzip member that is read for a chunk, and how far
	// inside of it, uncompressed, the chunk may be.
	maxMember = 64 << 20
)

// parallel is how many requests are under way at once.
const parallel = 4

// Image is a platform manifest of an accelerated image, and where some of its
// chunks are.
type Image struct {
	// Ref is the manifest's name, by digest.
	Ref name.Digest
	// MediaType and Size are the manifest's, as a subject's descriptor needs them.
	MediaType string
	Size      int64
	// Layers are all layers in order, also those without a table of contents.
	Layers []Layer
	// CompressedSize is that of all layers together.
	CompressedSize int64

	client     *registry.Client
	repo       *registry.Repository
	config     string // digest of the image's config
	configSize int64

	mu     sync.Mutex
	places map[[32]byte]Place
}

// Layer is a layer of an [Image].
type Layer struct {
	Digest, TOCDigest string
	Size              int64
	// tocOffset and tocSize say where the TOC is; tocSize is 0 for a layer without.
	tocOffset, tocSize int64
}

// Lazy says whether the layer has a table of contents, as accelerated layers do.
func (l *Layer) Lazy() bool { return l.tocSize > 0 }

// Place is where a chunk is in its image.
type Place struct {
	// Layer counts from 0.
	Layer int
	// Size of the content in bytes.
	Size int64
	// Name is the file's, if Locate was asked for names.
	Name string
	// The gzip member is at offset and ends before end; the chunk begins inner
	// bytes into what it unpacks to.
	offset, end, inner int64
}

// Load reads the manifest ref of an accelerated image for one platform.
func Load(ctx context.Context, client *registry.Client, ref name.Digest) (*Image, error) {
	m, err := client.Manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Config struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"config"`
		Layers []struct {
			Digest      string            `json:"digest"`
			Size        int64             `json:"size"`
			Annotations map[string]string `json:"annotations"`
		} `json:"layers"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(m.Raw, &doc); err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "the manifest of %s cannot be read", ref)
	}
	if doc.Manifests != nil || len(doc.Layers) > maxLayers {
		return nil, fault.New(fault.NotImage, nil, "%s is no image for one platform with at most %d layers", ref, maxLayers)
	}
	mt := m.MediaType
	if mt == "" {
		mt = mediaTypeManifest
	}
	im := &Image{Ref: ref, MediaType: mt, Size: int64(len(m.Raw)), client: client, config: doc.Config.Digest, configSize: doc.Config.Size, places: make(map[[32]byte]Place)}
	lazy := 0
	for _, d := range doc.Layers {
		l := Layer{Digest: d.Digest, Size: d.Size, TOCDigest: d.Annotations[image.AnnotationTOCDigest]}
		if d.Size < 0 || im.CompressedSize+d.Size < 0 {
			return nil, fault.New(fault.ImageInvalid, nil, "a layer of %s is said to have %d bytes", ref, d.Size)
		}
		im.CompressedSize += d.Size
		off, err1 := strconv.ParseInt(d.Annotations[image.AnnotationTOCOffset], 10, 64)
		size, err2 := strconv.ParseInt(d.Annotations[image.AnnotationTOCSize], 10, 64)
		if err1 == nil && err2 == nil && off > 0 && size > 0 && size <= maxTOC && off <= d.Size-size && strings.HasPrefix(l.TOCDigest, "sha256:") {
			l.tocOffset, l.tocSize = off, size
			lazy++
		}
		im.Layers = append(im.Layers, l)
	}
	if lazy == 0 {
		return nil, fault.New(fault.NotAccelerated, nil, "%s has no layer that can be read piece by piece: make an accelerated image with 'apparate convert'", ref)
	}
	if im.repo, err = client.Readable(ctx, ref.Context()); err != nil {
		return nil, err
	}
	return im, nil
}

// Locate reads the image's tables of contents and remembers where the wanted
// chunks are. What cannot be put into a pack is left out: chunks beyond a limit.
// names asks for the names of files too.
func (im *Image) Locate(ctx context.Context, wanted func(sum [32]byte) bool, names bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range im.Layers {
		if !im.Layers[i].Lazy() {
			continue
		}
		g.Go(func() error {
			found, err := im.locate(ctx, i, wanted, names)
			if err != nil {
				return err
			}
			im.keep(found)
			return nil
		})
	}
	return g.Wait()
}

// keep remembers where the chunks of a layer are.
func (im *Image) keep(found map[[32]byte]Place) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for sum, p := range found {
		// The lowest layer with the content, whichever was read first.
		if have, ok := im.places[sum]; !ok || p.Layer < have.Layer {
			im.places[sum] = p
		}
	}
}

// Place says where a chunk is, among those that Locate was asked for.
func (im *Image) Place(sum [32]byte) (Place, bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	p, ok := im.places[sum]
	return p, ok
}
