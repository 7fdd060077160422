package images

import (
	"context"
	"time"

	"github.com/apparate/apparate/snapshotter/source"
)

// Chain is a run of lazily mounted layers, bottom first, as Mount takes it.
type Chain struct {
	Layers        []source.Layer
	KeepWhiteouts bool
}

// Keep takes down every image that wanted does not list, and lets go of the
// layers that only those used. An image that was asked for after Keep called
// wanted stays, and so does one younger than Config.Grace that no Keep has
// wanted yet: its pull is still going on.
func (m *Manager) Keep(ctx context.Context, wanted func(context.Context) ([]Chain, error)) error {
	m.mu.Lock()
	gen := m.gen
	m.mu.Unlock()
	chains, err := wanted(ctx)
	if err != nil {
		return err
	}
	want := map[string]bool{}
	for _, c := range chains {
		keys, err := keysOf(c.Layers)
		if err != nil {
			return err
		}
		want[imageID(keys, c.KeepWhiteouts)] = true
	}
	for _, im := range m.unwanted(want, gen) {
		if err := m.drop(ctx, im, gen); err != nil {
			return err
		}
	}
	return m.release()
}

// unwanted returns the images that may go.
func (m *Manager) unwanted(want map[string]bool, gen uint64) []*img {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*img
	for id, im := range m.images {
		switch {
		case want[id]:
			im.claimed = true
		case im.gen > gen:
		case !im.claimed && im.gen > 0 && time.Since(im.since) < m.cfg.Grace:
		default:
			out = append(out, im)
		}
	}
	return out
}

// drop unmounts one image unless somebody asked for it meanwhile.
func (m *Manager) drop(ctx context.Context, im *img, gen uint64) error {
	if err := im.turn.take(ctx); err != nil {
		return err
	}
	defer im.turn.give()
	m.mu.Lock()
	if im.gen > gen {
		m.mu.Unlock()
		return nil
	}
	im.mounted, im.local = false, false
	m.mu.Unlock()
	if err := m.discard(im.id); err != nil {
		return err
	}
	m.log.Info("image unmounted", "image", im.id, "layers", len(im.keys))
	m.mu.Lock()
	defer m.mu.Unlock()
	if im.gen <= gen && m.images[im.id] == im {
		delete(m.images, im.id)
	}
	return nil
}

// release closes the layers that no image uses and nobody asked for lately.
// What they cached stays on disk within the cache's budget.
func (m *Manager) release() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := map[Key]bool{}
	for _, im := range m.images {
		for _, k := range im.keys {
			used[k] = true
		}
	}
	for k, e := range m.layers {
		if e.lay == nil || used[k] || (!e.claimed && time.Since(e.used) < m.cfg.Grace) {
			e.claimed = e.claimed || used[k]
			continue
		}
		select {
		case e.turn <- struct{}{}:
		default:
			continue // being loaded for somebody
		}
		if m.cfg.Prefetch != nil {
			m.cfg.Prefetch.Remove(string(k))
		}
		err := m.closeLocked(e)
		e.turn.give()
		if err != nil {
			return err
		}
	}
	return nil
}
