package startup

import (
	"context"
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/layer"
)

// decoders decompress frames of any origin: never more than the buffer they are given.
type decoders struct{ z *zstd.Decoder }

var sharedDecoders = sync.OnceValue(func() *decoders {
	// Checksums of frames are ignored as each chunk is hashed anyway.
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(max(2, runtime.GOMAXPROCS(0))), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(profile.MaxGroup), zstd.IgnoreChecksum(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return &decoders{z}
})

// frame decompresses raw, which must have exactly n bytes of content.
func (d *decoders) frame(raw []byte, n int64) ([]byte, error) {
	out, err := d.z.DecodeAll(raw, make([]byte, 0, n))
	if err != nil {
		return nil, err
	}
	if int64(len(out)) != n {
		return nil, fmt.Errorf("frame has %d bytes of content, not %d", len(out), n)
	}
	return out, nil
}

// piece is a chunk that was hashed.
type piece struct {
	sum  [32]byte
	data []byte
}

// target is a place of a chunk.
type target struct {
	feed  *feed
	chunk int
}

// decodeLater has a group decoded and delivered on another goroutine.
func (s *stream) decodeLater(ctx context.Context, g int, raw []byte) error {
	s.take(false)
	defer s.take(true)
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	early, err := s.awaitEarly(ctx)
	free := func() {
		early()
		<-s.slots
	}
	if err != nil {
		free()
		return err
	}
	release, err := s.limits.Hold(ctx, int64(len(raw))+s.table.Groups[g].ContentBytes())
	if err != nil {
		free()
		return err
	}
	done, err := s.limits.Work(ctx)
	if err != nil {
		release()
		free()
		return err
	}
	s.work.Go(func() {
		defer free()
		defer release()
		began := time.Now()
		pieces := s.decode(g, raw)
		s.stats.decode.Add(int64(time.Since(began)))
		done()
		s.deliver(g, pieces)
	})
	return nil
}

// awaitEarly lets half of the processors decode while the image is not mounted yet: the
// others mount it, and nobody reads before.
func (s *stream) awaitEarly(ctx context.Context) (free func(), err error) {
	select {
	case <-s.mounted:
		return func() {}, nil
	default:
	}
	select {
	case s.early <- struct{}{}:
		return func() { <-s.early }, nil
	case <-s.mounted:
		return func() {}, nil
	case <-ctx.Done():
		return func() {}, ctx.Err()
	}
}

// decode returns the chunks of a group that may belong somewhere.
func (s *stream) decode(g int, raw []byte) []piece {
	group := &s.table.Groups[g]
	s.stats.chunks.Add(int64(len(group.Chunks)))
	s.stats.content.Add(group.ContentBytes())
	content, err := s.decoders.frame(raw, group.ContentBytes())
	if err != nil {
		s.stats.bad.Add(group.ContentBytes())
		s.log.Debug("group of a start-up profile cannot be decompressed", "pack", s.table.Pack, "group", g, "error", err)
		return nil
	}
	pieces := make([]piece, 0, len(group.Chunks))
	for _, c := range group.Chunks {
		data := content[:c.Size:c.Size]
		content = content[c.Size:]
		if !s.own && len(s.places[c.ID]) == 0 {
			continue // of another image
		}
		sum := sha256.Sum256(data)
		if profile.ID(sum) != c.ID {
			s.stats.bad.Add(c.Size)
			continue
		}
		pieces = append(pieces, piece{sum, data})
	}
	return pieces
}

// deliver gives the chunks of a group to the layers that have them, and keeps them for
// those that are not known yet.
func (s *stream) deliver(g int, pieces []piece) {
	s.mu.Lock()
	var puts []put
	for _, p := range pieces {
		to := s.targets[p.sum]
		if s.complete && len(to) == 0 && s.own {
			s.stats.bad.Add(int64(len(p.data)))
		}
		for _, t := range to {
			puts = append(puts, put{t, p})
		}
	}
	if !s.complete {
		s.pending = append(s.pending, pieces...)
		for _, p := range pieces {
			s.bytes += int64(len(p.data))
		}
	}
	s.mu.Unlock()
	s.put(puts)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.complete && s.applying == 0 {
		s.settle(g)
	} else {
		s.held = append(s.held, g)
	}
}

// put is a chunk and one of its places.
type put struct {
	target
	piece
}

func (s *stream) put(puts []put) {
	for _, p := range puts {
		if p.feed.layer.Have(p.chunk) {
			continue
		}
		if err := p.feed.layer.Put(p.chunk, p.data, p.sum); err != nil {
			continue // the cache has said why; readers ask themselves
		}
		s.stats.delivered.Add(int64(len(p.data)))
	}
}

// attach makes a layer of the image known to the stream.
func (s *stream) attach(l *layer.Layer) {
	f := &feed{s: s, layer: l, group: make([]int32, l.Chunks())}
	mine := map[[32]byte][]target{}
	var matched, had int64
	for i := range f.group {
		sum, size := l.Chunk(i)
		f.group[i] = -1
		if g, ok := s.groupOf[profile.ID(sum)]; ok {
			f.group[i] = g
			mine[sum] = append(mine[sum], target{f, i})
			if matched += size; l.Have(i) {
				had += size
			}
		}
	}
	s.mu.Lock()
	if s.closed.Load() {
		s.mu.Unlock()
		return
	}
	var puts []put
	for _, p := range s.pending {
		for _, t := range mine[p.sum] {
			puts = append(puts, put{t, p})
		}
	}
	for sum, t := range mine {
		s.targets[sum] = append(s.targets[sum], t...)
	}
	f.forget = l.Expect(f)
	s.feeds = append(s.feeds, f)
	s.matched, s.had = s.matched+matched, s.had+had
	s.applying++
	s.mu.Unlock()
	s.spawn(func() { // a Prepare waits for this layer, and not for its chunks
		s.put(puts)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.applying--
		s.applied()
	})
}

// allAttached says that no more layers come.
func (s *stream) allAttached() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.complete {
		return
	}
	s.complete = true
	s.plan()
	s.applied()
}

// applied goes on once every layer has what came before it; mu is held.
func (s *stream) applied() {
	if s.complete && s.applying == 0 {
		for _, g := range s.held {
			s.settle(g)
		}
		for _, p := range s.pending {
			if s.own && len(s.targets[p.sum]) == 0 {
				s.stats.bad.Add(int64(len(p.data)))
			}
		}
		s.held, s.pending, s.bytes = nil, nil, 0
	}
	s.notify()
}

// plan settles the groups that are not worth their bytes, once all indexes are there;
// mu is held.
func (s *stream) plan() {
	s.places = make(map[uint64][]target, len(s.targets))
	for sum, to := range s.targets {
		id := profile.ID(sum)
		s.places[id] = append(s.places[id], to...)
	}
	switch {
	case s.matched == 0:
		s.reason = abandonedForeign
	case (s.matched-s.had)*4 < s.matched: // the rest is fetched as it is needed
		s.reason = abandonedCached
	}
	for g := range s.table.Groups {
		if s.state[g].Load() != ahead {
			continue
		}
		group := &s.table.Groups[g]
		needed := int64(0)
		for _, c := range group.Chunks {
			if s.lacking(c.ID) {
				needed += c.Size
			}
		}
		// Of one's own, what is not needed is mostly here; of another's it belongs nowhere.
		worth := group.ContentBytes() / 2
		if s.own {
			worth /= 2
		}
		if s.reason != "" || needed == 0 || needed < worth {
			s.settle(g)
		}
	}
}

// lacking says that a place of a chunk does not have it.
func (s *stream) lacking(id uint64) bool {
	for _, t := range s.places[id] {
		if !t.feed.layer.Have(t.chunk) {
			return true
		}
	}
	return false
}
