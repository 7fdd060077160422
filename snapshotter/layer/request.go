package layer

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apparate/apparate/snapshotter/fetch"
)

const (
	// maxBuffered is the longest member whose compressed bytes are read into
	// memory first, so that it is decompressed beside the next one's transfer.
	// Longer ones, which may end in members without content, are decompressed
	// as they arrive.
	maxBuffered = 8 << 20
	// maxGiveWay is how long a background request stands still between two
	// members: longer, and the registry would hang up.
	maxGiveWay = 500 * time.Millisecond
)

// run carries out a request: every flight of it is settled when it returns.
func (l *Layer) run(q *request) {
	defer l.requests.Done()
	if q.priority == demand {
		defer l.o.Gate.Leave()
	}
	var work sync.WaitGroup
	defer work.Wait()
	left := q.flights
	l.count(q.priority)
	ctx := l.ctx
	if q.priority == background {
		ctx = l.later
	}
	r, err := l.blob.Open(ctx, q.start, q.end-q.start)
	if err == nil {
		left, err = l.split(q, &body{r: r, at: q.start, end: q.end, count: l.stats.bytes(q.priority)}, &work)
		_ = r.Close() // what matters was read and will be verified
	}
	l.fail(left, err)
}

// count counts a request to the registry.
func (l *Layer) count(p priority) {
	if p == demand {
		l.stats.demand.Add(1)
	} else {
		l.stats.background.Add(1)
	}
}

// split reads one member after the other off a response and has them
// decompressed. It returns the flights it did not get to and why.
func (l *Layer) split(q *request, b *body, work *sync.WaitGroup) (left []*flight, err error) {
	for k, f := range q.flights {
		x := &l.idx.Members[f.member]
		q.at.Store(x.Offset)
		if q.priority == background && !q.beside {
			l.giveWay(q)
		}
		if q.cut.Load() {
			return q.flights[k:], errCut
		}
		if err := b.skip(x.Offset); err != nil {
			return q.flights[k:], err
		}
		take := l.takeBuffered
		if x.Size > maxBuffered {
			take = l.takeStreamed
		}
		if err := take(f, b, work); err != nil {
			return q.flights[k:], err
		}
	}
	return nil, nil
}

// giveWay lets a background request wait while readers wait for others, but not
// when one waits for this request.
func (l *Layer) giveWay(q *request) {
	idle := l.o.Gate.Idle()
	if idle == nil {
		return
	}
	select {
	case <-idle:
		return
	default:
	}
	t := time.NewTimer(maxGiveWay)
	defer t.Stop()
	select {
	case <-idle:
	case <-q.urgent:
	case <-t.C:
	case <-l.ctx.Done():
	}
}

// takeBuffered reads a member into memory; it is decompressed on another goroutine,
// which work counts unless it may wait for long. An error is the transport's.
func (l *Layer) takeBuffered(f *flight, b *body, work *sync.WaitGroup) error {
	lim := l.o.Limits
	size := l.idx.Members[f.member].Size
	room, atOnce := l.room(f.member)
	release, err := lim.hold(l.ctx, size+room)
	if err != nil {
		return err
	}
	raw := lim.buffer(size)
	drop := func() {
		lim.recycle(raw)
		release()
	}
	if _, err := io.ReadFull(b, raw); err != nil {
		drop()
		return err
	}
	p, h := l.line(f)
	decode := func() {
		defer release()
		began := time.Now()
		d, err := l.decodeBuffered(f.member, raw, room, atOnce)
		l.stats.decode.Add(int64(time.Since(began)))
		lim.done(p)
		lim.recycle(raw)
		l.finish(f, d, err)
	}
	if h == spare {
		// Neither the response nor the gate waits for it.
		l.requests.Add(1)
		go func() {
			defer l.requests.Done()
			if err := lim.await(l.ctx, p); err != nil {
				drop()
				l.fail([]*flight{f}, err)
				return
			}
			decode()
		}()
		return nil
	}
	if err := lim.await(l.ctx, p); err != nil {
		drop()
		return err
	}
	work.Go(decode)
	return nil
}

// line gives a member whose bytes have come its place in the line for a worker, where
// who joins it later finds it.
func (l *Layer) line(f *flight) (*place, haste) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := spare
	switch {
	case f.demanded:
		h = now
	case f.expected:
		h = soon
	}
	f.place = l.o.Limits.line(h)
	return f.place, h
}

// takeStreamed decompresses a member as it arrives. It takes no worker's place,
// as it mostly waits for the network.
func (l *Layer) takeStreamed(f *flight, b *body, _ *sync.WaitGroup) error {
	release, err := l.o.Limits.hold(l.ctx, l.content(f.member))
	if err != nil {
		return err
	}
	defer release()
	d, err := l.decode(f.member, io.LimitReader(b, l.idx.Members[f.member].Size))
	if b.err != nil {
		return b.err
	}
	l.finish(f, d, err)
	return nil
}

// finish settles a flight whose bytes were decompressed, or fetches them once
// more when they were not the right ones.
func (l *Layer) finish(f *flight, d decoded, err error) {
	var bad *DigestError
	if errors.As(err, &bad) {
		l.stats.digest.Add(1)
		l.o.Logger.Warn("bytes from the registry do not match, fetching once more", "error", bad)
		d, err = l.refetch(f, bad)
	}
	if err != nil {
		l.fail([]*flight{f}, err)
		return
	}
	l.deliver(f, d)
}

// refetch gets one member once more, by itself.
func (l *Layer) refetch(f *flight, bad *DigestError) (decoded, error) {
	x := &l.idx.Members[f.member]
	l.count(f.req.priority)
	// It holds memory that requests with a turn at the registry may wait for.
	r, err := l.blob.Open(fetch.WithPriority(l.ctx, fetch.Urgent), x.Offset, x.Size)
	if err != nil {
		return decoded{}, fmt.Errorf("%w; fetching once more: %w", bad, err)
	}
	b := &body{r: r, at: x.Offset, end: x.Offset + x.Size, count: l.stats.bytes(f.req.priority)}
	d, err := l.decode(f.member, b)
	_ = r.Close() // what matters was read and verified
	if b.err != nil {
		return decoded{}, fmt.Errorf("%w; fetching once more: %w", bad, b.err)
	}
	if err != nil {
		l.stats.digest.Add(1)
	}
	return d, err
}

// deliver hands verified chunks to the readers, and then to the cache.
func (l *Layer) deliver(f *flight, d decoded) {
	f.decoded = d
	close(f.done)
	f.putErr = l.keep(f)
	l.mu.Lock()
	if f.putErr != nil {
		l.keepInMemory(f)
	} else {
		delete(l.flights, f.member)
		if !f.demanded {
			// Nobody saw it, and nobody can find it any more.
			l.o.Limits.recycle(f.buf)
		}
	}
	l.mu.Unlock()
	close(f.stored)
}

// keep puts the chunks of a flight into the cache.
func (l *Layer) keep(f *flight) error {
	first := l.idx.Members[f.member].First
	for k, p := range f.chunks {
		if err := l.cache.Put(first+k, p); err != nil {
			return fmt.Errorf("layer %s: %w", l.key, err)
		}
	}
	return nil
}

// fail settles flights without bytes. They are out of sight before anyone is
// woken, so that who tries again does not meet the same failure.
func (l *Layer) fail(fs []*flight, err error) {
	if len(fs) == 0 {
		return
	}
	var bad *DigestError
	switch {
	case l.ctx.Err() != nil:
		err = ErrClosed
	case !errors.As(err, &bad):
		err = fmt.Errorf("layer %s: %w", l.key, err)
	}
	l.mu.Lock()
	for _, f := range fs {
		delete(l.flights, f.member)
	}
	l.mu.Unlock()
	for _, f := range fs {
		f.err = err
		close(f.done)
		close(f.stored)
	}
}

// body is a response to [at, end) of the blob. It knows where it is, counts,
// and remembers an error of the transport, an early end included, so that it is not
// taken for bad content.
type body struct {
	r       io.Reader
	at, end int64
	count   *atomic.Int64
	err     error
}

// Read reads what is left of the range.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.at == b.end {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.end-b.at)])
	b.at += int64(n)
	b.count.Add(int64(n))
	if err == io.EOF {
		if err = nil; b.at < b.end {
			err = io.ErrUnexpectedEOF
		}
	}
	b.err = err
	return n, err
}

// skip reads up to an offset of the blob.
func (b *body) skip(to int64) error {
	if to == b.at {
		return nil
	}
	_, err := io.CopyN(io.Discard, b, to-b.at)
	return err
}
