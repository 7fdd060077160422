package host

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	godigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Image is an image that containerd has records of.
type Image struct {
	Namespace string
	// Names are those of the records: a tag, a name with a digest, and the id under
	// which kubelet knows the image.
	Names []string
	// Digest is of what the records point to: an index or a manifest.
	Digest godigest.Digest
	// Snapshotter is the one that cannot use it.
	Snapshotter string
}

// String names the image for people.
func (i Image) String() string {
	if len(i.Names) == 0 {
		return i.Digest.String()
	}
	return i.Names[0]
}

// Unusable lists images of which no container can be made with the snapshotter: it
// has not all layers, and those that it lacks are not in the content store, as they
// were pulled lazily for another one or thrown away once they were unpacked. kubelet
// does not pull an image again that there is a record of, so its pods would fail for
// ever.
//
// In namespaces other than kubelet's nobody pulls again by himself, and everybody
// chooses a snapshotter: there only those images are listed that our snapshotter has
// and no other one that stays.
//
// Images for other platforms, and what cannot be read as an image, are not listed:
// they are as useless with any snapshotter. Neither is an image that is being pulled
// for the first time: its record is made last.
func (s *Store) Unusable(ctx context.Context, snapshotter string) (bad []Image, err error) {
	if err := s.mustLoad(ctx, snapshotter); err != nil {
		return nil, err
	}
	others, err := s.snapshotters(ctx)
	if err != nil {
		return nil, err
	}
	err = s.each(ctx, func(ctx context.Context, ns string) error {
		unusable, err := s.unusable(ctx, ns, snapshotter, others)
		for i := range unusable {
			unusable[i].Namespace, unusable[i].Snapshotter = ns, snapshotter
		}
		bad = append(bad, unusable...)
		return err
	})
	return bad, err
}

// unusable does so for one namespace.
func (s *Store) unusable(ctx context.Context, ns, snapshotter string, loaded []string) ([]Image, error) {
	if ns != kubernetes && (snapshotter == Name || !slices.Contains(loaded, Name)) {
		return nil, nil
	}
	targets, err := s.targets(ctx)
	if err != nil || len(targets) == 0 {
		return nil, err
	}
	c := contents{s: s}
	if c.has, err = s.blobs(ctx); err != nil {
		return nil, err
	}
	chains := map[string]map[string]bool{} // by snapshotter
	for _, name := range loaded {
		if ns == kubernetes && name != snapshotter {
			continue
		}
		if chains[name], err = s.committed(ctx, name); err != nil {
			return nil, err
		}
	}
	var bad []Image
	for _, i := range targets {
		layers, ids, err := c.layers(ctx, i.target)
		if err != nil {
			return nil, err
		}
		usable := func(name string) bool { return c.usable(layers, ids, chains[name]) }
		switch {
		case len(layers) == 0:
			continue
		case ns == kubernetes:
			if usable(snapshotter) {
				continue
			}
		case !usable(Name) || slices.ContainsFunc(loaded, func(n string) bool { return n != Name && usable(n) }):
			continue
		}
		bad = append(bad, Image{Names: i.names, Digest: i.target.Digest})
	}
	return bad, nil
}

// Drop removes the records of images, so that kubelet pulls them again when it needs
// them. Containers that run keep their snapshots; what nothing needs any more is
// collected before Drop returns. An image that has become usable since it was listed
// stays, and so does a record that points to something else by now.
func (s *Store) Drop(ctx context.Context, drop []Image) error {
	if len(drop) == 0 {
		return nil
	}
	still := map[string][]Image{} // by snapshotter
	var names []*imagesapi.DeleteImageRequest
	var in []string
	for _, i := range drop {
		if _, ok := still[i.Snapshotter]; !ok {
			bad, err := s.Unusable(ctx, i.Snapshotter)
			if err != nil {
				return err
			}
			still[i.Snapshotter] = bad
		}
		at := slices.IndexFunc(still[i.Snapshotter], func(b Image) bool { return b.Namespace == i.Namespace && b.Digest == i.Digest })
		if at < 0 {
			continue
		}
		for _, n := range i.Names {
			if slices.Contains(still[i.Snapshotter][at].Names, n) {
				names, in = append(names, &imagesapi.DeleteImageRequest{Name: n}), append(in, i.Namespace)
			}
		}
	}
	for k, r := range names {
		r.Sync = k == len(names)-1
		if _, err := imagesapi.NewImagesClient(s.conn).Delete(within(ctx, in[k]), r); err != nil && status.Code(err) != codes.NotFound {
			return s.failed("removing the image "+r.GetName(), err)
		}
	}
	return nil
}

// target is what several names point to.
type target struct {
	target ocispec.Descriptor
	names  []string
}

// targets are the images of a namespace, by their first names.
func (s *Store) targets(ctx context.Context) ([]target, error) {
	r, err := imagesapi.NewImagesClient(s.conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, s.failed("listing images", err)
	}
	byDigest := map[godigest.Digest]*target{}
	for _, i := range r.GetImages() {
		d := descriptor(i.GetTarget())
		if byDigest[d.Digest] == nil {
			byDigest[d.Digest] = &target{target: d}
		}
		byDigest[d.Digest].names = append(byDigest[d.Digest].names, i.GetName())
	}
	var out []target
	for _, t := range byDigest {
		// "sha256:…" comes last: people know the others.
		slices.SortFunc(t.names, func(a, b string) int {
			if x, y := strings.HasPrefix(a, "sha256:"), strings.HasPrefix(b, "sha256:"); x != y {
				if x {
					return 1
				}
				return -1
			}
			return strings.Compare(a, b)
		})
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b target) int { return strings.Compare(a.names[0], b.names[0]) })
	return out, nil
}

func descriptor(d *types.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.GetMediaType(), Digest: godigest.Digest(d.GetDigest()), Size: d.GetSize()}
}

// blobs is the whole content of a namespace.
func (s *Store) blobs(ctx context.Context) (map[godigest.Digest]bool, error) {
	infos, err := s.contentInfos(ctx)
	if err != nil {
		return nil, err
	}
	has := make(map[godigest.Digest]bool, len(infos))
	for _, i := range infos {
		has[godigest.Digest(i.GetDigest())] = true
	}
	return has, nil
}

func (s *Store) contentInfos(ctx context.Context) (infos []*contentapi.Info, err error) {
	stream, err := contentapi.NewContentClient(s.conn).List(ctx, &contentapi.ListContentRequest{})
	if err != nil {
		return nil, s.failed("listing the content", err)
	}
	if err := all(stream.Recv, func(m *contentapi.ListContentResponse) { infos = append(infos, m.GetInfo()...) }); err != nil {
		return nil, s.failed("listing the content", err)
	}
	return infos, nil
}

// committed are the names of a snapshotter's committed snapshots in a namespace.
func (s *Store) committed(ctx context.Context, snapshotter string) (map[string]bool, error) {
	infos, err := s.snapshots(ctx, snapshotter)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, i := range infos {
		if i.GetKind() == snapshotsapi.Kind_COMMITTED {
			names[i.GetName()] = true
		}
	}
	return names, nil
}

func (s *Store) snapshots(ctx context.Context, snapshotter string) (infos []*snapshotsapi.Info, err error) {
	stream, err := snapshotsapi.NewSnapshotsClient(s.conn).List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: snapshotter})
	if err == nil {
		err = all(stream.Recv, func(m *snapshotsapi.ListSnapshotsResponse) { infos = append(infos, m.GetInfo()...) })
	}
	if err != nil {
		return nil, s.failed("listing the snapshots of "+snapshotter, err)
	}
	return infos, nil
}

// contents answers for one namespace.
type contents struct {
	s   *Store
	has map[godigest.Digest]bool
}

// usable says whether layers can be used with a snapshotter that has the chains: what
// lies above the highest layer that it has, containerd unpacks from the content.
func (c contents) usable(layers []ocispec.Descriptor, ids []godigest.Digest, chains map[string]bool) bool {
	top := len(ids)
	for ; top > 0 && !chains[ids[top-1].String()]; top-- {
	}
	return !slices.ContainsFunc(layers[top:], func(l ocispec.Descriptor) bool { return !c.has[l.Digest] })
}

// layers returns the layers of the image that target is or has for this platform,
// bottom first, and the ids of their chains. There are none where it is no image of
// this platform, or does not say so.
func (c contents) layers(ctx context.Context, target ocispec.Descriptor) ([]ocispec.Descriptor, []godigest.Digest, error) {
	const depth = 3 // an index in an index is rare enough
	m, checked, err := c.manifest(ctx, target, depth)
	if err != nil || m == nil {
		return nil, nil, err
	}
	var config ocispec.Image
	if ok, err := c.read(ctx, m.Config, &config); err != nil || !ok {
		return nil, nil, err
	}
	if target.Digest != checked.Digest && checked.Platform == nil && !platforms.Default().Match(platforms.Normalize(config.Platform)) {
		return nil, nil, nil
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, nil, nil
	}
	return m.Layers, identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs)), nil
}

// manifest returns the best manifest of target that is there, and its descriptor; nil:
// there is none.
func (c contents) manifest(ctx context.Context, target ocispec.Descriptor, depth int) (*ocispec.Manifest, ocispec.Descriptor, error) {
	switch {
	case images.IsManifestType(target.MediaType):
		var m ocispec.Manifest
		ok, err := c.read(ctx, target, &m)
		if err != nil || !ok {
			return nil, target, err
		}
		return &m, target, nil
	case images.IsIndexType(target.MediaType) && depth > 0:
		var index ocispec.Index
		if ok, err := c.read(ctx, target, &index); err != nil || !ok {
			return nil, target, err
		}
		here := platforms.Default()
		fit := slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Platform != nil && !here.Match(*d.Platform) })
		slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
			switch {
			case a.Platform == nil || b.Platform == nil:
				return order(b.Platform != nil, a.Platform != nil)
			default:
				return order(here.Less(*b.Platform, *a.Platform), here.Less(*a.Platform, *b.Platform))
			}
		})
		for _, d := range fit {
			if m, at, err := c.manifest(ctx, d, depth-1); err != nil || m != nil {
				return m, at, err
			}
		}
	}
	return nil, target, nil
}

// order is a comparison by whether one comes after or before the other.
func order(after, before bool) int {
	switch {
	case before == after:
		return 0
	case before:
		return -1
	default:
		return 1
	}
}

// read reads a blob as JSON. ok is false where it is not there, or is no such thing.
func (c contents) read(ctx context.Context, d ocispec.Descriptor, v any) (ok bool, err error) {
	const most = 8 << 20 // as containerd's own limit for manifests
	if !c.has[d.Digest] || d.Size > most {
		return false, nil
	}
	stream, err := contentapi.NewContentClient(c.s.conn).Read(ctx, &contentapi.ReadContentRequest{Digest: d.Digest.String()})
	var b bytes.Buffer
	if err == nil {
		err = all(stream.Recv, func(m *contentapi.ReadContentResponse) { b.Write(m.GetData()) })
	}
	switch {
	case status.Code(err) == codes.NotFound: // collected just now
		return false, nil
	case err != nil:
		return false, c.s.failed("reading "+d.Digest.String(), err)
	}
	return json.Unmarshal(b.Bytes(), v) == nil, nil
}
