package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
)

// opener opens one range of the blob, as Blob.Open does. The layers below are
// functions from opener to opener, stacked in stack.
type opener func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// stack is the one place where the layers meet, outermost first:
//
//   - measure sees what the caller sees: one read, whatever it took;
//   - retry keeps the promise of exactly n bytes: it waits, tries again, and goes
//     on from the byte where a stream broke;
//   - limit is inside retry, so that a read that waits before its next attempt
//     holds no slot;
//   - hedge is inside limit: a second try of what is late takes no slot of its own;
//   - mirrors is inside limit: one slot, whichever host is asked in the end;
//   - web is one request to one endpoint, with redirects and credentials.
func stack(cfg Config) opener {
	return measure(cfg, retry(cfg, limit(cfg, hedge(cfg, newMirrors(cfg).open))))
}

// New returns the blob that cfg describes. It does no I/O: the first Open does.
func New(cfg Config) Blob {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancelCause(context.Background())
	return &blob{name: cfg.Name, size: cfg.Size, open: stack(cfg), meter: cfg.Meter, life: ctx, end: cancel}
}

// Probe asks for the length of a blob in bytes, where the manifest is not at
// hand. It reads the first byte instead of sending HEAD, which signed URLs and
// some registries refuse. cfg.Size is ignored.
func Probe(ctx context.Context, cfg Config) (size int64, err error) {
	cfg = cfg.withDefaults()
	cfg.Size = math.MaxInt64
	size = -1
	cfg.learn = func(total int64) { size = total }
	r, err := stack(cfg)(ctx, 0, 1)
	if err != nil {
		if size == 0 { // there is no first byte
			return 0, nil
		}
		return 0, fmt.Errorf("ask for the size of a blob: %w", err)
	}
	if err := r.Close(); err != nil {
		return 0, err
	}
	return size, nil
}

// blob checks what it is asked for and ends its streams when it is closed.
type blob struct {
	name  string
	size  int64
	open  opener
	meter *Meter
	life  context.Context // ends with Close
	end   context.CancelCauseFunc
}

var _ Blob = (*blob)(nil)

func (b *blob) Size() int64 { return b.size }

// Line is that of Config.Meter, 0 and 0 without one.
func (b *blob) Line() (rate int64, free float64) {
	if b.meter == nil {
		return 0, 0
	}
	return b.meter.Line(b.name)
}

// Worth is that of Config.Meter, 0 without one.
func (b *blob) Worth() int64 {
	if b.meter == nil {
		return 0
	}
	return b.meter.Worth(b.name)
}

func (b *blob) Close() error {
	b.end(ErrClosed)
	return nil
}

func (b *blob) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := CheckRange(off, n, b.size); err != nil {
		return nil, &Error{Host: b.name, Range: rangeOf(off, n), Err: err}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.life, func() { cancel(ErrClosed) })
	end := func() {
		stop()
		cancel(errStreamClosed)
	}
	if err := b.ended(ctx, off, n); err != nil {
		end()
		return nil, err
	}
	if n == 0 {
		end()
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	r, err := b.open(ctx, off, n)
	if err != nil {
		err = b.named(ctx, err, off, n)
		end()
		return nil, err
	}
	return &stream{blob: b, ctx: ctx, end: end, body: r, off: off, n: n, left: n}, nil
}

// errStreamClosed is the cause of the context of a stream that its reader closed.
var errStreamClosed = errors.New("read after close")

// CheckRange returns an error that wraps ErrRange unless [off, off+n) is within
// a blob of size bytes. Implementations of Blob share it.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || n > size || off > size-n {
		return fmt.Errorf("%w: %d bytes from %d of %d", ErrRange, n, off, size)
	}
	return nil
}

// ended returns the error of a read that its context or Close ended, else nil.
// Close is asked itself: AfterFunc tells the context in a goroutine, a bit later.
func (b *blob) ended(ctx context.Context, off, n int64) error {
	for _, c := range []context.Context{ctx, b.life} {
		if c.Err() != nil {
			return &Error{Host: b.name, Range: rangeOf(off, n), Err: context.Cause(c)}
		}
	}
	return nil
}

// named returns the error that the caller sees: the context's own reason where
// that ended the read, since the layers below only notice a broken connection.
func (b *blob) named(ctx context.Context, err error, off, n int64) error {
	if why := b.ended(ctx, off, n); why != nil {
		return why
	}
	return err
}

// stream counts the bytes and obeys the context, also where the bytes are in
// memory already.
type stream struct {
	blob   *blob
	ctx    context.Context
	end    func()
	body   io.ReadCloser
	off, n int64
	left   int64
}

func (s *stream) Read(p []byte) (int, error) {
	if err := s.blob.ended(s.ctx, s.off, s.n); err != nil {
		return 0, err
	}
	if s.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > s.left {
		p = p[:s.left]
	}
	n, err := s.body.Read(p)
	s.left -= int64(n)
	switch {
	case s.left == 0, err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF // retry never ends early; keep the promise even so
	}
	return n, s.blob.named(s.ctx, err, s.off, s.n)
}

func (s *stream) Close() error {
	// The context first: it wakes a Read that waits on another goroutine.
	s.end()
	return s.body.Close()
}

// rangeOf is the value of the Range header for n bytes from off (RFC 9110, 14.1.2).
func rangeOf(off, n int64) string {
	return fmt.Sprintf("bytes=%d-%d", off, off+n-1)
}
