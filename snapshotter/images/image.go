package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/apparate/apparate/snapshotter/erofs"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// Files of an image in its directory.
const (
	metaFile  = "meta.erofs"
	imageFile = "image.json"
	mountDir  = "fs"
)

// img is a chain of layers that is mounted, or about to be.
type img struct {
	id   string
	keys []Key
	// turn lets one caller at a time mount or unmount.
	turn turn

	// The rest is guarded by Manager.mu.
	mounted bool
	since   time.Time
	// local says that it is mounted from the cache's own files as well.
	local bool
	// gen is Manager.gen when the image was last asked for; see Keep.
	gen uint64
	// claimed says that a Keep has wanted the image: from then on it goes as
	// soon as one does not.
	claimed bool
}

// imageRecord is what image.json holds, for the daemon after this one.
type imageRecord struct {
	Layers        []Key `json:"layers"`
	KeepWhiteouts bool  `json:"keepWhiteouts"`
}

func (m *Manager) imageDir(id string) string { return filepath.Join(m.cfg.Root, "images", id) }

// Mount returns the directory where the chain of layers, bottom first, is
// mounted as one tree; the mount is made when it is not there yet. Of an image that is
// here as a whole it may be another one than before: see [Manager.Arrived].
// keepWhiteouts says that something lies below the chain, so that what it
// deletes must stay visible as overlayfs whiteouts.
//
// The directory stays valid until a Keep begins after Mount returned and does
// not want the image.
func (m *Manager) Mount(ctx context.Context, layers []source.Layer, keepWhiteouts bool) (string, error) {
	keys, err := keysOf(layers)
	if err != nil {
		return "", err
	}
	im, err := m.take(ctx, keys, keepWhiteouts)
	if err != nil {
		return "", err
	}
	defer im.turn.give()
	dir := filepath.Join(m.imageDir(im.id), mountDir)
	m.mu.Lock()
	mounted := im.mounted
	m.mu.Unlock()
	if local, ok := m.localDir(im); ok {
		return local, nil
	}
	if mounted && m.cfg.Mount.Check(dir) == nil {
		return dir, nil
	}
	if err := m.addAll(ctx, layers); err != nil {
		return "", err
	}
	m.cfg.Watch.Mounted(layers, StepLoaded)
	m.cfg.Watch.Mounting(layers, m.readers(keys))
	if err := m.mountImage(ctx, im, layers, keepWhiteouts, dir); err != nil {
		return "", fmt.Errorf("mount image %s: %w", im.id, err)
	}
	m.cfg.Watch.Mounted(layers, StepMounted)
	m.mu.Lock()
	im.mounted, im.since = true, time.Now()
	m.mu.Unlock()
	m.prefetch(keys)
	return dir, nil
}

// take returns the row of the chain when it is the caller's turn.
func (m *Manager) take(ctx context.Context, keys []Key, keepWhiteouts bool) (*img, error) {
	for {
		im := m.touch(keys, keepWhiteouts)
		if err := im.turn.take(ctx); err != nil {
			return nil, err
		}
		m.mu.Lock()
		current := m.images[im.id] == im
		m.mu.Unlock()
		if current {
			return im, nil
		}
		im.turn.give() // it was dropped meanwhile
	}
}

// touch returns the row of the chain and notes that it is wanted now.
func (m *Manager) touch(keys []Key, keepWhiteouts bool) *img {
	id := imageID(keys, keepWhiteouts)
	m.mu.Lock()
	defer m.mu.Unlock()
	im := m.images[id]
	if im == nil {
		im = &img{id: id, keys: keys, turn: newTurn(), since: time.Now()}
		m.images[id] = im
	}
	m.gen++
	im.gen = m.gen
	return im
}

// addAll makes all layers of a chain ready at once: one round trip, not one a layer.
func (m *Manager) addAll(ctx context.Context, layers []source.Layer) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, l := range layers {
		g.Go(func() error {
			_, err := m.Add(ctx, l)
			return err
		})
	}
	return g.Wait()
}

// mountImage writes the metadata image if it is not on disk yet and mounts it.
// The caller has im.turn.
func (m *Manager) mountImage(ctx context.Context, im *img, layers []source.Layer, keepWhiteouts bool, dir string) error {
	meta := filepath.Join(m.imageDir(im.id), metaFile)
	if _, err := os.Stat(filepath.Join(m.imageDir(im.id), imageFile)); err != nil {
		if err := m.build(ctx, im, layers, keepWhiteouts); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	devices := make([]string, len(im.keys))
	for i, k := range im.keys {
		devices[i] = filepath.Join(BlobsDir(m.cfg.Root), k.File())
	}
	return m.cfg.Mount.Mount(ctx, meta, devices, dir)
}

// build merges the layers and writes meta.erofs, and then image.json, which
// says that it is whole.
func (m *Manager) build(ctx context.Context, im *img, layers []source.Layer, keepWhiteouts bool) error {
	idx := make([]*toc.Index, len(im.keys))
	sizes := make([]int64, len(im.keys))
	g, gctx := errgroup.WithContext(ctx)
	for i, k := range im.keys {
		g.Go(func() (err error) {
			idx[i], err = m.index(gctx, k)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range idx {
		sizes[i] = deviceSize(idx[i].DataSize)
	}
	root, err := tree.Merge(idx, keepWhiteouts)
	if err != nil {
		return err
	}
	m.cfg.Watch.Mounted(layers, StepMerged)
	image, err := erofs.Build(root, sizes)
	if err != nil {
		return err
	}
	rec, err := json.Marshal(imageRecord{Layers: im.keys, KeepWhiteouts: keepWhiteouts})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.imageDir(im.id), 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(m.imageDir(im.id), metaFile), image); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(m.imageDir(im.id), imageFile), rec); err != nil {
		return err
	}
	m.cfg.Watch.Mounted(layers, StepBuilt)
	m.mu.Lock()
	for _, k := range im.keys {
		if e := m.layers[k]; e != nil {
			e.full = nil
		}
	}
	m.mu.Unlock()
	return nil
}

// deviceSize is the length of the file that stands for a layer: an EROFS
// device must not be empty, a layer may.
func deviceSize(data int64) int64 { return max(data, toc.BlockSize) }

func writeFile(name string, b []byte) error {
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, name)
}

func (m *Manager) prefetch(keys []Key) {
	if m.cfg.Prefetch == nil {
		return
	}
	// Under the lock, as closing is: what was told to leave must not come back.
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		if e := m.layers[k]; e != nil && e.lay != nil {
			m.cfg.Prefetch.Add(string(k), e.lay)
		}
	}
}

// InUse are the keys of the layers of all images below root, in whatever state an
// earlier daemon left those, for cache.Options.InUse.
func InUse(root string) (keys []string, err error) {
	files, err := filepath.Glob(filepath.Join(root, "images", "*", imageFile))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var rec imageRecord
		if json.Unmarshal(b, &rec) == nil { // else adopt removes it
			for _, k := range rec.Layers {
				keys = append(keys, string(k))
			}
		}
	}
	return keys, nil
}

// adopt takes over the images that an earlier daemon left mounted.
func (m *Manager) adopt() error {
	dir := filepath.Join(m.cfg.Root, "images")
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	for _, d := range list {
		b, err := os.ReadFile(filepath.Join(dir, d.Name(), imageFile))
		var rec imageRecord
		if err == nil {
			err = json.Unmarshal(b, &rec)
		}
		if err != nil || imageID(rec.Layers, rec.KeepWhiteouts) != d.Name() {
			m.log.Warn("removing an unfinished image", "image", d.Name(), "error", err)
			if err := m.discard(d.Name()); err != nil {
				return err
			}
			continue
		}
		mounted := m.cfg.Mount.Check(filepath.Join(dir, d.Name(), mountDir)) == nil
		local := m.cfg.Mount.Check(filepath.Join(dir, d.Name(), localMountDir)) == nil
		m.images[d.Name()] = &img{id: d.Name(), keys: rec.Layers, turn: newTurn(),
			mounted: mounted, local: local, since: time.Now()}
	}
	return nil
}

// Resume loads the layers of the images that were adopted mounted, so that the
// cache need not be told any more which those are (see [InUse]), and goes on fetching
// the rest of them. Reads need not wait for it.
func (m *Manager) Resume(ctx context.Context) {
	m.mu.Lock()
	var keys []Key
	for _, im := range m.images {
		if im.mounted || im.local {
			keys = append(keys, im.keys...)
		}
	}
	m.mu.Unlock()
	for _, k := range keys {
		e, err := m.entry(k)
		if err == nil {
			err = e.load(ctx, m, nil)
		}
		if err != nil {
			m.log.Error("layer of a mounted image cannot be served", "layer", k, "error", err)
		}
	}
	if ctx.Err() == nil {
		m.cfg.Cache.Settled()
	}
	m.prefetch(keys)
}

// discard takes an image's mount and directory away.
func (m *Manager) discard(id string) error {
	dir := m.imageDir(id)
	for _, point := range []string{localMountDir, mountDir} {
		if err := m.cfg.Mount.Unmount(filepath.Join(dir, point)); err != nil {
			return fmt.Errorf("unmount image %s: %w", id, err)
		}
	}
	return os.RemoveAll(dir)
}

// UnmountAll takes every image down, for a shutdown that is not a restart.
func (m *Manager) UnmountAll() error {
	m.endLocalize()
	m.mu.Lock()
	ids := make([]string, 0, len(m.images))
	for id := range m.images {
		ids = append(ids, id)
	}
	m.images = map[string]*img{}
	m.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, m.discard(id))
	}
	return errors.Join(errs...)
}
