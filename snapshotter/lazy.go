package snapshotter

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/source"
)

// resolve makes the layer that the labels name readable, or says why it cannot
// be lazy. The first layer of a pull sets off all the others.
func (s *Snapshotter) resolve(ctx context.Context, labels map[string]string) (source.Layer, error) {
	// A layer without the digest of a table of contents is an ordinary one, and
	// nobody is asked about it: the pause image of a node whose registry does not
	// answer must not wait for it.
	src, err := source.FromLabels(labels)
	if errors.Is(err, source.ErrNoTOCDigest) && s.cfg.ForeignWait > 0 {
		src, err = s.foreign(ctx, src, err)
	}
	if err != nil {
		return src, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PrepareTimeout)
	defer cancel()
	p := s.pulls.get(src, false)
	if src.BlobSize == 0 {
		src = p.complete(ctx, src)
	}
	const poll = 100 * time.Millisecond
	for {
		_, err := s.cfg.Images.Add(ctx, src)
		if err == nil || Reason(err) != notAuthorized || s.pulls.age(src.Manifest) >= s.cfg.CredentialsWait {
			return src, err
		}
		select {
		case <-ctx.Done():
			return src, err
		case <-time.After(poll):
		}
	}
}

// foreign looks in the manifest for what the labels of a layer did not say: annotations
// of zstd:chunked that containerd does not pass on. All layers of an image together wait
// for it as long as they may; ordinary is the error of a layer that is none.
func (s *Snapshotter) foreign(ctx context.Context, src source.Layer, ordinary error) (source.Layer, error) {
	p := s.pulls.get(src, true)
	ctx, cancel := context.WithDeadline(ctx, p.began.Add(s.cfg.ForeignWait))
	defer cancel()
	select {
	case <-p.done:
	case <-ctx.Done():
		return src, ordinary
	}
	for _, l := range p.layers {
		if l.Digest == src.Digest && l.TOCDigest != "" {
			l.DiffID = src.DiffID
			return l, nil
		}
	}
	return src, ordinary
}

// fallback notes that a layer is pulled the ordinary way, and why.
func (s *Snapshotter) fallback(labels map[string]string, err error) {
	reason := Reason(err)
	s.cfg.Metrics.fallback(reason)
	s.log.Warn("layer is pulled the ordinary way", "layer", labels[source.LabelLayerDigest],
		"image", labels[source.LabelImageRef], "reason", reason, "error", err)
}

// pullMemory is how long a pull is remembered: as long as containerd may take
// from the first Prepare of an image to its last.
const pullMemory = 10 * time.Minute

// pulls remembers the images that are being pulled, by manifest digest.
type pulls struct {
	s  *Snapshotter
	mu sync.Mutex
	m  map[digest.Digest]*pull
	// first is when a manifest was first asked for, also when that failed.
	first map[digest.Digest]time.Time
}

// pull is one image on its way: its manifest, fetched once, tells of all
// layers at once what the labels tell layer by layer.
type pull struct {
	began time.Time
	// foreign says that no label named a table of contents: only the manifest can say
	// whether any layer is lazy.
	foreign bool
	// done is closed when layers or err are set.
	done   chan struct{}
	layers []source.Layer
	err    error
}

func newPulls(s *Snapshotter) *pulls {
	return &pulls{s: s, m: map[digest.Digest]*pull{}, first: map[digest.Digest]time.Time{}}
}

// get returns the pull of src's manifest. The first call for a manifest
// starts reading it, all its layers' tables of contents, and the mount.
func (ps *pulls) get(src source.Layer, foreign bool) *pull {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for d, p := range ps.m {
		if time.Since(p.began) > pullMemory {
			delete(ps.m, d)
		}
	}
	for d, t := range ps.first {
		if time.Since(t) > pullMemory {
			delete(ps.first, d)
		}
	}
	if _, ok := ps.first[src.Manifest]; !ok {
		ps.first[src.Manifest] = time.Now()
	}
	if p := ps.m[src.Manifest]; p != nil {
		return p
	}
	p := &pull{began: time.Now(), foreign: foreign, done: make(chan struct{})}
	if src.Manifest == "" || ps.s.cfg.Manifests == nil {
		p.err = errors.New("containerd named no manifest")
		close(p.done)
		return p
	}
	ps.m[src.Manifest] = p
	if !foreign {
		ps.s.cfg.Starts.Begin(src.Ref, src.Manifest)
	}
	ps.s.wg.Add(1)
	go func() {
		defer ps.s.wg.Done()
		ps.run(p, src)
	}()
	return p
}

// age is how long ago a manifest was first asked for.
func (ps *pulls) age(d digest.Digest) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return time.Since(ps.first[d])
}

// run reads the manifest, and mounts the image while containerd still asks for
// its layers one by one. Whatever fails here is no error: each Prepare decides
// for itself.
func (ps *pulls) run(p *pull, src source.Layer) {
	ctx, cancel := context.WithTimeout(ps.s.ctx, ps.s.cfg.PrepareTimeout)
	defer cancel()
	p.layers, p.err = ps.s.cfg.Manifests.Manifest(ctx, src.Ref, src.Manifest)
	close(p.done)
	log := ps.s.log.With("image", src.Ref, "manifest", src.Manifest)
	if p.err != nil {
		log.Debug("manifest was not read ahead", "error", p.err)
		if !p.foreign { // what may be an ordinary image does not wait once more
			ps.forget(src.Manifest)
		}
		return
	}
	if p.foreign {
		if !slices.ContainsFunc(p.layers, func(l source.Layer) bool { return l.TOCDigest != "" }) {
			return
		}
		ps.s.cfg.Starts.Begin(src.Ref, src.Manifest)
	}
	ps.s.cfg.Starts.Manifest(src.Manifest, p.layers)
	var wg sync.WaitGroup
	lazy := true
	for _, l := range p.layers {
		if l.TOCDigest == "" {
			lazy = false
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := ps.s.cfg.Images.Add(ctx, l); err != nil {
				log.Debug("layer was not read ahead", "layer", l.Digest, "error", err)
			}
		}()
	}
	wg.Wait()
	ps.s.cfg.Starts.Complete(src.Manifest)
	if !lazy || len(p.layers) == 0 || ctx.Err() != nil {
		return
	}
	if _, err := ps.s.cfg.Images.Mount(ctx, p.layers, false); err != nil {
		log.Debug("image was not mounted ahead", "error", err)
	}
}

// forget lets the next Prepare try anew.
func (ps *pulls) forget(d digest.Digest) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.m, d)
}

// complete fills in what the labels of src did not say from the manifest.
func (p *pull) complete(ctx context.Context, src source.Layer) source.Layer {
	select {
	case <-p.done:
	case <-ctx.Done():
		return src
	}
	for _, l := range p.layers {
		if l.Digest != src.Digest {
			continue
		}
		src.BlobSize = l.BlobSize
		if src.TOCSize == 0 {
			src.TOCOffset, src.TOCSize = l.TOCOffset, l.TOCSize
		}
		break
	}
	return src
}
