package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/apparate/apparate/snapshotter/cache"
)

// localMountDir is the second mount of an image that is here as a whole: its devices are
// the cache's own files, so that containers need this daemon no more.
const localMountDir = "local"

// localSettle is how long after its mount an image is left alone: its program starts.
const localSettle = 10 * time.Second

// Arrived says that nothing is missing any more of a layer. Images of which that holds for
// all layers are mounted once more, from the cache's own files, and [Manager.Mount] returns
// that mount from the moment on in which no container stands on the other one. Those keep
// it: the kernel opened its devices when it was made.
func (m *Manager) Arrived(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.localizing.Err() != nil {
		return
	}
	for _, im := range m.images {
		if im.mounted && !im.local && slices.Contains(im.keys, Key(key)) && m.wholeLocked(im) {
			m.work.Go(func() { m.localize(im) })
		}
	}
}

// wholeLocked says whether all layers of an image are here, verified or not.
func (m *Manager) wholeLocked(im *img) bool {
	return !slices.ContainsFunc(im.keys, func(k Key) bool {
		e := m.layers[k]
		if e == nil || e.lay == nil {
			return true
		}
		_, _, missing := e.lay.Missing(0, 1)
		return missing
	})
}

// localize makes the second mount. It matters for speed alone, so nothing waits for it and
// what goes wrong is only told.
func (m *Manager) localize(im *img) {
	m.mu.Lock()
	wait := time.Until(im.since.Add(m.cfg.LocalSettle))
	m.mu.Unlock()
	select {
	case <-m.localizing.Done():
		return
	case <-time.After(wait):
	}
	// One image at a time: some of the bytes may have to be hashed.
	if m.sealing.take(m.localizing) != nil {
		return
	}
	defer m.sealing.give()
	err := m.mountLocal(m.localizing, im)
	switch {
	case err == nil, m.localizing.Err() != nil, errors.Is(err, errNotNow):
	case errors.Is(err, cache.ErrIncomplete), errors.Is(err, cache.ErrFull), errors.Is(err, cache.ErrClosed):
		m.log.Debug("image stays as it is", "image", im.id, "reason", err)
	default:
		m.log.Warn("image is all here, but cannot be mounted without the daemon", "image", im.id, "error", err)
	}
}

// endLocalize ends what Arrived began, for good, and waits for it.
func (m *Manager) endLocalize() {
	m.mu.Lock()
	m.stopLocalize() // within: who has found it running has begun its work
	m.mu.Unlock()
	m.work.Wait()
}

// errNotNow says that an image was mounted from local files, or let go, meanwhile.
var errNotNow = errors.New("the image is local or gone")

// mountLocal seals the layers of an image and mounts them.
func (m *Manager) mountLocal(ctx context.Context, im *img) error {
	blobs := m.blobs(im)
	if blobs == nil {
		return errNotNow
	}
	devices := make([]string, len(blobs))
	for i, b := range blobs {
		var err error
		if devices[i], err = b.Seal(ctx); err != nil {
			return err
		}
	}
	// Not before: containers would wait for it.
	if err := im.turn.take(ctx); err != nil {
		return err
	}
	defer im.turn.give()
	// Blobs that are still those that were sealed stay open, as the image uses them, so
	// the names are of the sealed files and of no later ones.
	if !slices.Equal(m.blobs(im), blobs) {
		return errNotNow
	}
	dir := filepath.Join(m.imageDir(im.id), localMountDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := m.cfg.Mount.MountLocal(ctx, filepath.Join(m.imageDir(im.id), metaFile), devices, dir); err != nil {
		return fmt.Errorf("mount image %s from local files: %w", im.id, err)
	}
	m.mu.Lock()
	im.local = true
	m.mu.Unlock()
	m.log.Info("image is all here: new containers read it without the daemon", "image", im.id, "layers", len(im.keys))
	return nil
}

// blobs are an image's layers in the cache; nil when they are not to be mounted.
func (m *Manager) blobs(im *img) []*cache.Blob {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.images[im.id] != im || !im.mounted || im.local {
		return nil
	}
	var list []*cache.Blob
	for _, k := range im.keys {
		e := m.layers[k]
		if e == nil || e.lay == nil {
			return nil
		}
		list = append(list, e.blob)
	}
	return list
}

// localDir is where an image is mounted from local files, if it is and no container stands
// on its other mount: with those a new one shares what they have in memory.
func (m *Manager) localDir(im *img) (dir string, ok bool) {
	m.mu.Lock()
	local, mounted := im.local, im.mounted
	m.mu.Unlock()
	if !local {
		return "", false
	}
	if mounted {
		if used, err := m.cfg.Mount.Lower(filepath.Join(m.imageDir(im.id), mountDir)); err != nil || used {
			return "", false
		}
	}
	dir = filepath.Join(m.imageDir(im.id), localMountDir)
	if err := m.cfg.Mount.Check(dir); err != nil {
		m.log.Warn("image is not mounted from local files any more", "image", im.id, "error", err)
		m.mu.Lock()
		im.local = false
		m.mu.Unlock()
		return "", false
	}
	return dir, true
}
