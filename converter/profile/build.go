package profile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// BuildOptions say how a pack is built; zero values stand for the defaults.
type BuildOptions struct {
	// TempDir is where the pack waits; empty means the system's directory.
	TempDir string
	// Budget is the longest pack in bytes: DefaultBudget of the image by default.
	// What is needed later than what fits is left out.
	Budget int64
	// Group is about how many bytes of content a frame has: DefaultGroup by default.
	Group int64
	// Level of compression: DefaultLevel of the plan by default.
	Level zstd.EncoderLevel
	// Workers is how many processors are used; 0 means all.
	Workers int
}

const (
	// DefaultGroup is the content of a frame in bytes: long enough that pieces of
	// 256 KiB and less share what they have in common, short enough that the first is soon there.
	DefaultGroup = 512 << 10
	// window is about how much content is worked on at once, in bytes; it bounds the memory.
	window = 24 << 20
	// A gap of maxGap bytes or less between two members is read and thrown away:
	// it costs less than another request. A request is no longer than maxSpan unless one member is.
	maxGap, maxSpan = 64 << 10, 8 << 20
)

// DefaultLevel is the level of compression for so many bytes of content. All levels
// take the same time to unpack, and every start fetches the pack: so the best one,
// as long as packing takes no longer than some seconds (BenchmarkLevels; README).
func DefaultLevel(content int64) zstd.EncoderLevel {
	if content > 128<<20 {
		return zstd.SpeedBetterCompression
	}
	return zstd.SpeedBestCompression
}

// DefaultBudget is the longest pack for an image whose layers have the given
// size in bytes, compressed: 60 % of the image, 256 MiB at most. A pack with more is
// little better than a whole pull. Of a small image it may have all.
func DefaultBudget(imageSize int64) int64 {
	const least, most = 4 << 20, 256 << 20
	return max(least, min(most, imageSize/10*6))
}

// Pack is a built profile. Close it.
type Pack struct {
	Table profile.Table
	// Plan is what the pack holds: the given plan, or the first part of it.
	Plan Plan
	// Left is how many chunks did not fit into the budget.
	Left int
	// MemberBytes is what the gzip members of the packed chunks take in the
	// image; FetchedBytes in that many Requests is what was fetched to build the pack.
	MemberBytes, FetchedBytes, Requests int64

	file *os.File
}

// Open reads the pack from its beginning.
func (p *Pack) Open() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(p.file, 0, p.Table.Size)), nil
}

// Upload is the pack as a blob to push.
func (p *Pack) Upload() registry.Upload {
	return registry.Upload{Digest: p.Table.Pack, Size: p.Table.Size, Open: p.Open}
}

// Close frees the pack's space.
func (p *Pack) Close() error { return p.file.Close() }

// Build fetches the plan's chunks and packs them, in the plan's order. The same
// plan of the same image is the same pack, byte for byte. Its memory does not
// grow with the plan.
func Build(ctx context.Context, im *Image, plan Plan, o BuildOptions) (*Pack, error) {
	o.Budget = min(cmp.Or(o.Budget, DefaultBudget(im.CompressedSize)), profile.MaxPack)
	o.Group, o.Level, o.Workers = cmp.Or(o.Group, DefaultGroup), cmp.Or(o.Level, DefaultLevel(plan.ContentBytes())), cmp.Or(o.Workers, runtime.GOMAXPROCS(0))
	file, err := encode.TempFile(o.TempDir)
	if err != nil {
		return nil, fault.New(fault.Internal, err, "no temporary file can be made: choose another directory with --temp-dir")
	}
	// Every chunk has a digest that is checked: a checksum of a frame would be computed for nothing.
	// A frame without a window of its own is no longer in memory than its content.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(o.Level), zstd.WithEncoderConcurrency(o.Workers),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		_ = file.Close() // nothing is in it
		return nil, fmt.Errorf("zstd: %w", err)
	}
	b := &builder{im: im, o: o, enc: enc, sum: sha256.New(), pack: &Pack{file: file}}
	err = errors.Join(b.run(ctx, plan), enc.Close())
	if err != nil {
		_ = file.Close() // it is given up
		return nil, err
	}
	return b.pack, nil
}

// builder is one run of Build.
type builder struct {
	im   *Image
	o    BuildOptions
	enc  *zstd.Encoder
	sum  hash.Hash
	pack *Pack
	full bool

	fetched, requests atomic.Int64
}

// piece is a chunk on its way into the pack.
type piece struct {
	Planned
	place   Place
	content []byte
}

// run works through the plan, a window at a time.
func (b *builder) run(ctx context.Context, plan Plan) error {
	var open []*piece // fetched, and not yet enough for a group
	// A table may lay its chunks out so that few of them take much to fetch.
	most := 2*b.im.CompressedSize + window
	for i := 0; i < len(plan) && !b.full && b.fetched.Load() <= most; {
		var batch []*piece
		for size := int64(0); i < len(plan) && (size == 0 || size+plan[i].Size <= window); i++ {
			place, ok := b.im.Place(plan[i].Sum)
			if !ok || place.Size != plan[i].Size {
				continue
			}
			size += place.Size
			batch = append(batch, &piece{Planned: plan[i], place: place})
		}
		if err := b.fetch(ctx, batch); err != nil {
			return err
		}
		open = append(open, batch...)
		groups, rest := b.part(open)
		if i == len(plan) && len(rest) > 0 {
			groups, rest = append(groups, rest), nil
		}
		open = rest
		if err := b.write(ctx, groups); err != nil {
			return err
		}
	}
	t := &b.pack.Table
	t.Pack = "sha256:" + hex.EncodeToString(b.sum.Sum(nil))
	b.pack.Left = len(plan) - len(b.pack.Plan)
	b.pack.FetchedBytes, b.pack.Requests = b.fetched.Load(), b.requests.Load()
	if t.Size == 0 {
		return fault.New(fault.Internal, nil, "the profile of %s has nothing in it that fits into %d bytes", b.im.Ref, b.o.Budget)
	}
	return nil
}

// part splits pieces into whole groups and a rest that may still grow.
func (b *builder) part(pieces []*piece) (groups [][]*piece, rest []*piece) {
	begin, size := 0, int64(0)
	for i, p := range pieces {
		if size > 0 && size+p.Size > b.o.Group {
			groups = append(groups, pieces[begin:i])
			begin, size = i, 0
		}
		size += p.Size
	}
	return groups, slices.Clone(pieces[begin:])
}

// write compresses groups and appends them to the pack, until the budget is used up.
func (b *builder) write(ctx context.Context, groups [][]*piece) error {
	frames := make([][]byte, len(groups))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(b.o.Workers)
	for i, group := range groups {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var content []byte
			for _, p := range group {
				content = append(content, p.content...)
			}
			frames[i] = b.enc.EncodeAll(content, nil)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	t := &b.pack.Table
	for i, group := range groups {
		if t.Size+int64(len(frames[i])) > b.o.Budget {
			b.full = true
			return nil
		}
		if _, err := b.pack.file.Write(frames[i]); err != nil {
			return fault.Local(err, "building the profile of "+b.im.Ref.String())
		}
		_, _ = b.sum.Write(frames[i]) // a hash returns no error
		entry := profile.Group{Size: int64(len(frames[i]))}
		for _, p := range group {
			entry.Chunks = append(entry.Chunks, profile.Chunk{ID: profile.ID(p.Sum), Size: p.Size, At: p.At})
			b.pack.Plan = append(b.pack.Plan, p.Planned)
			p.content = nil
		}
		t.Groups = append(t.Groups, entry)
		t.Size += entry.Size
	}
	return nil
}

// span is a part of a layer's blob that is fetched with one request.
type span struct {
	layer      int
	begin, end int64
	members    []member
}

// member is a gzip member and the pieces that are in it, by where they begin.
type member struct {
	begin, end int64
	pieces     []*piece
}

// fetch fills in the contents of the pieces.
func (b *builder) fetch(ctx context.Context, pieces []*piece) error {
	spans := b.spans(pieces)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range spans {
		g.Go(func() error { return retrying(ctx, func() error { return b.fetchSpan(ctx, &spans[i]) }) })
	}
	return g.Wait()
}

// spans plans the requests: members that are close together share one.
func (b *builder) spans(pieces []*piece) []span {
	sorted := slices.Clone(pieces)
	slices.SortFunc(sorted, func(a, c *piece) int {
		return cmp.Or(cmp.Compare(a.place.Layer, c.place.Layer), cmp.Compare(a.place.offset, c.place.offset), cmp.Compare(a.place.inner, c.place.inner))
	})
	var spans []span
	for _, p := range sorted {
		pl := p.place
		n := len(spans)
		if n == 0 || spans[n-1].layer != pl.Layer || pl.offset-spans[n-1].end > maxGap || pl.end-spans[n-1].begin > maxSpan && pl.offset >= spans[n-1].end {
			spans = append(spans, span{layer: pl.Layer, begin: pl.offset, end: pl.offset})
			n++
		}
		s := &spans[n-1]
		if m := len(s.members); m > 0 && s.members[m-1].begin == pl.offset {
			s.members[m-1].pieces = append(s.members[m-1].pieces, p)
			continue
		}
		s.members = append(s.members, member{begin: pl.offset, end: pl.end, pieces: []*piece{p}})
		s.end = pl.end
		b.pack.MemberBytes += pl.end - pl.offset
	}
	return spans
}

// fetchSpan fetches a span and unpacks its pieces.
func (b *builder) fetchSpan(ctx context.Context, s *span) error {
	b.requests.Add(1)
	body, err := b.im.repo.Range(ctx, b.im.Layers[s.layer].Digest, s.begin, s.end-s.begin)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }() // everything that matters was read
	raw := make([]byte, 0, min(s.end-s.begin, maxSpan))
	at := s.begin
	for i := range s.members {
		m := &s.members[i]
		n, err := io.CopyN(io.Discard, body, m.begin-at)
		b.fetched.Add(n)
		if err != nil {
			return err
		}
		buf := bytes.NewBuffer(raw[:0])
		n, err = io.CopyN(buf, body, m.end-m.begin)
		b.fetched.Add(n)
		if err != nil {
			return err
		}
		at = m.end
		if err := m.unpack(buf.Bytes()); err != nil {
			// A damaged transfer looks like a broken layer.
			return fault.NewTemporary(fault.LayerCorrupt, err, "layer %s of %s is not what its table of contents says", b.im.Layers[s.layer].Digest, b.im.Ref)
		}
	}
	return nil
}
