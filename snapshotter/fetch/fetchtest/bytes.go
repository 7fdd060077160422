// Package fetchtest has what tests of fetch.Blob share: a blob in memory that
// counts its readers and fails on demand, and the suite that every blob passes.
package fetchtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// ErrInjected is the cause of every failure that a Fault without Err makes.
var ErrInjected = errors.New("injected failure")

// Fault is how one Open of a Bytes goes wrong. The zero value fails at once with
// a temporary *fetch.Error.
type Fault struct {
	// Err ends the read; nil is a temporary *fetch.Error around ErrInjected.
	Err error
	// After is how many bytes are delivered before Err.
	After int64
	// Flip delivers all bytes, the first of them wrong, and no error.
	Flip bool
	// Block delivers After bytes and then nothing until the context or the
	// blob ends.
	Block bool
}

// Range is one Open.
type Range struct {
	Off, N int64
}

// Bytes is a fetch.Blob over a slice. All methods may be called in parallel.
type Bytes struct {
	data   []byte
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	opens   []Range
	bytes   int64
	readers int
	most    int
	at      map[int]Fault
	always  *Fault
}

var _ fetch.Blob = (*Bytes)(nil)

// NewBytes returns a blob with the content data, which must not change after.
func NewBytes(data []byte) *Bytes {
	return &Bytes{data: data, closed: make(chan struct{}), at: map[int]Fault{}}
}

// OnIndex makes the i-th Open fail, the first being 0. A sweep over i tries a
// failure at every point of a computation.
func (b *Bytes) OnIndex(i int, f Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at[i] = f
}

// Toggle makes every Open fail from now on, or none but those of OnIndex if f is nil.
func (b *Bytes) Toggle(f *Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.always = f
}

// Opens are all calls of Open so far, in order.
func (b *Bytes) Opens() []Range {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.opens)
}

// Count is the number of calls of Open so far.
func (b *Bytes) Count() int { return len(b.Opens()) }

// Delivered is the number of bytes read so far.
func (b *Bytes) Delivered() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// Unclosed is the number of streams that nobody has closed.
func (b *Bytes) Unclosed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.readers
}

// Parallel is the largest number of streams that were open at once.
func (b *Bytes) Parallel() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most
}

// Reset forgets faults and counts.
func (b *Bytes) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opens, b.bytes, b.most = nil, 0, b.readers
	b.at, b.always = map[int]Fault{}, nil
}

// Size is the length of the data.
func (b *Bytes) Size() int64 { return int64(len(b.data)) }

// Close makes all reads fail, also those under way.
func (b *Bytes) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// Open returns the range, or what the faults say.
func (b *Bytes) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := fetch.CheckRange(off, n, b.Size()); err != nil {
		return nil, b.fail(off, n, err)
	}
	if err := b.ended(ctx); err != nil {
		return nil, b.fail(off, n, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f, faulty := b.at[len(b.opens)]
	if !faulty && b.always != nil {
		f, faulty = *b.always, true
	}
	b.opens = append(b.opens, Range{off, n})
	s := &stream{blob: b, ctx: ctx, off: off, n: n, data: b.data[off : off+n], closed: make(chan struct{})}
	if faulty {
		s.fault = &f
		if f.Err == nil {
			e := b.fail(off, n, ErrInjected)
			e.Temporary = true
			s.fault.Err = e
		}
		if f.After == 0 && !f.Flip && !f.Block {
			return nil, s.fault.Err
		}
	}
	b.readers++
	b.most = max(b.most, b.readers)
	return s, nil
}

func (b *Bytes) fail(off, n int64, err error) *fetch.Error {
	return &fetch.Error{Host: "memory", Range: fmt.Sprintf("bytes=%d-%d", off, off+n-1), Err: err}
}

func (b *Bytes) ended(ctx context.Context) error {
	select {
	case <-b.closed:
		return fetch.ErrClosed
	default:
		return ctx.Err()
	}
}

// stream is one Open.
type stream struct {
	blob   *Bytes
	ctx    context.Context
	off, n int64
	data   []byte
	pos    int64
	fault  *Fault
	once   sync.Once
	closed chan struct{}
}

func (s *stream) Read(p []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, s.blob.fail(s.off, s.n, errors.New("read after close"))
	default:
	}
	if err := s.blob.ended(s.ctx); err != nil {
		return 0, s.blob.fail(s.off, s.n, err)
	}
	rest := s.data[s.pos:]
	if f := s.fault; f != nil && !f.Flip {
		rest = s.data[s.pos:min(max(f.After, s.pos), s.n)]
		if len(rest) == 0 && s.pos < s.n {
			return 0, s.stop(f)
		}
	}
	if len(rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, rest)
	if s.fault != nil && s.fault.Flip && s.pos == 0 && n > 0 {
		p[0] ^= 0xff
	}
	s.pos += int64(n)
	s.blob.mu.Lock()
	defer s.blob.mu.Unlock()
	s.blob.bytes += int64(n)
	return n, nil
}

// stop returns the fault's error, when its time has come.
func (s *stream) stop(f *Fault) error {
	if !f.Block {
		return f.Err
	}
	select {
	case <-s.ctx.Done():
		return s.blob.fail(s.off, s.n, context.Cause(s.ctx))
	case <-s.blob.closed:
		return s.blob.fail(s.off, s.n, fetch.ErrClosed)
	case <-s.closed:
		return s.blob.fail(s.off, s.n, errors.New("read after close"))
	}
}

func (s *stream) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.blob.mu.Lock()
		defer s.blob.mu.Unlock()
		s.blob.readers--
	})
	return nil
}
