package images

import (
	"context"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/apparate/apparate/snapshotter/layer"
)

// Lookup answers the kernel's question for a blob file by name. It reads
// memory and at most one small local file.
func (m *Manager) Lookup(name string) (node uint64, size int64, ok bool) {
	node, err := strconv.ParseUint(name, 16, 64)
	if err != nil || fileName(node) != name {
		return 0, 0, false
	}
	size, ok = m.Size(node)
	return node, size, ok
}

// Size returns the length of a blob file in bytes.
func (m *Manager) Size(node uint64) (int64, bool) {
	e, ok := m.byID(node)
	if !ok {
		return 0, false
	}
	m.mu.Lock()
	data, loaded := e.rec.DataSize, e.lay != nil
	m.mu.Unlock()
	if !loaded {
		rec, err := m.record(e.key)
		if err != nil {
			return 0, false
		}
		data = rec.DataSize
	}
	return deviceSize(data), true
}

// ReadAt reads a blob file: n bytes of it from off, fewer only at its end.
// An error names the layer.
func (m *Manager) ReadAt(ctx context.Context, node uint64, p []byte, off int64) (int, error) {
	e, ok := m.byID(node)
	if !ok {
		return 0, fmt.Errorf("blob file %s: %w", fileName(node), fs.ErrNotExist)
	}
	l, data, err := m.reader(ctx, e)
	if err != nil {
		return 0, err
	}
	if end := deviceSize(data); off+int64(len(p)) > end {
		p = p[:max(0, end-off)]
	}
	n, err := l.ReadAt(ctx, p, off)
	if err != nil {
		return 0, fmt.Errorf("layer %s: %w", e.key, err)
	}
	clear(p[n:]) // an empty layer still has a device of one block
	return len(p), nil
}

// reader returns the layer of a row, loaded.
func (m *Manager) reader(ctx context.Context, e *entry) (*layer.Layer, int64, error) {
	for {
		m.mu.Lock()
		l, data := e.lay, e.rec.DataSize
		m.mu.Unlock()
		if l != nil {
			return l, data, nil
		}
		if err := e.load(ctx, m, nil); err != nil {
			return nil, 0, err
		}
	}
}

// Stats are counters since the daemon started, and gauges of now.
type Stats struct {
	layer.Stats
	// Layers are loaded, Images are mounted, of them Local from local files as well.
	Layers, Images, Local int
	// CacheBytes is what the cache takes on disk.
	CacheBytes int64
}

// Stats returns the sum over all layers.
func (m *Manager) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Stats{Stats: m.gone, CacheBytes: m.cfg.Cache.Usage()}
	for _, e := range m.layers {
		if e.lay != nil {
			s.Stats = addStats(s.Stats, e.lay.Stats())
			s.Layers++
		}
	}
	for _, im := range m.images {
		if im.mounted {
			s.Images++
		}
		if im.local {
			s.Local++
		}
	}
	return s
}

// CachedBytes is what a layer takes on disk: all of it, where the rest is fetched in the
// background. CRI asks but once, some seconds after the pull.
func (m *Manager) CachedBytes(key Key) int64 {
	n := m.cfg.Cache.BlobUsage(string(key))
	if m.cfg.Prefetch == nil {
		return n
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.layers[key]; e != nil {
		n = max(n, e.rec.DataSize)
	}
	return n
}
