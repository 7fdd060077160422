package layer

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apparate/apparate/snapshotter/toc"
)

// priority is who wants a request.
type priority uint8

const (
	demand priority = iota
	background
)

const (
	// cutDistance is how many compressed bytes of a background request a reader
	// waits for before the request is cut short instead: some round trip's worth.
	cutDistance = 512 << 10
	// maxPart is the compressed bytes after which a request gives way to another one
	// beside it: what is far ahead of a reader comes on several connections.
	maxPart = 4 << 20
	// maxUnkept bounds the members in memory that the cache did not take.
	maxUnkept = 8 << 20
	// maxTries bounds how often a read claims the same member.
	maxTries = 4
)

// flight is one member on its way.
type flight struct {
	member int
	req    *request
	// demanded says that a reader refers to chunks, expected that one will soon, or that
	// somebody fetches them in order to have them. place is where it waits to be
	// decompressed, nil before its bytes are there. All three are guarded by Layer.mu.
	demanded, expected bool
	place              *place

	// done is closed when decoded and err are set, for readers.
	done chan struct{}
	decoded
	err error
	// stored is closed when the cache was given the chunks; putErr is set then.
	stored chan struct{}
	putErr error
}

// request is one range of the blob.
type request struct {
	priority   priority
	beside     bool  // gives no way between members: see Eager
	start, end int64 // [start, end) of the blob
	next       int   // the member behind the last one
	flights    []*flight
	at         atomic.Int64 // offset of the member being read

	// urgent is closed (once: hurried, guarded by Layer.mu) when a reader waits for
	// a member of a background request.
	urgent  chan struct{}
	hurried bool
	// cut asks a background request to end before its next member.
	cut atomic.Bool
}

// ticket is the place of a reader in the queue for a member: a flight, its own
// or joined, or nil when the member was cached meanwhile.
type ticket struct {
	member int
	f      *flight
	own    bool
}

// claim returns a ticket for each member of need, which ascends. Members that
// nobody fetches become requests, which are started; a demand claim takes
// neighbours along, and what is missing of the addresses [from, until) if until is set.
func (l *Layer) claim(need []int, from, until int64, p priority) ([]ticket, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, ErrClosed
	}
	b := batch{l: l, priority: p, gap: l.o.Gap}
	if p == background {
		b.gap, b.beside = l.backgroundGap()
	}
	tickets := make([]ticket, len(need))
	for k, m := range need {
		tickets[k] = b.take(m)
	}
	if p == demand {
		next := l.memberAt(from)
		if len(need) > 0 {
			next = need[len(need)-1] + 1
		}
		sweep := b.sweep()
		b.extend(next, until, sweep.window)
		sweep.on(b.last)
	}
	l.requests.Add(len(b.requests))
	l.mu.Unlock()
	for _, q := range b.requests {
		if p == demand {
			// Here, not in run: there is no moment without it.
			l.o.Gate.Enter()
		}
		go l.run(q)
	}
	return tickets, nil
}

// memberAt is the member of the first content at or after an address, the
// number of members when there is none.
func (l *Layer) memberAt(addr int64) int {
	i, _ := l.idx.ChunkRange(addr, 0)
	if i == len(l.idx.Chunks) {
		return len(l.idx.Members)
	}
	return l.idx.Chunks[i].Member
}

// batch is the requests that one claim makes; Layer.mu is held.
type batch struct {
	l        *Layer
	priority priority
	beside   bool  // of all requests
	gap      int64 // see Options.Gap
	requests []*request
	last     *request
}

// take joins or adds a member that is needed.
func (b *batch) take(m int) ticket {
	f := b.l.flights[m]
	own := f == nil
	switch {
	case !own:
		if b.priority == demand {
			f.hurry(b.l.idx)
		}
	case b.l.cached(m):
		return ticket{member: m}
	default:
		f = b.add(m)
	}
	b.want(f, b.priority == demand)
	return ticket{m, f, own}
}

// want notes who needs a flight: a reader that waits for it, or one that will come.
func (b *batch) want(f *flight, waits bool) {
	h := soon
	if waits {
		h, f.demanded = now, true
	} else {
		f.expected = true
	}
	if f.place != nil {
		b.l.o.Limits.hurry(f.place, h)
	}
}

// hurry tells a background request that a reader waits for this flight.
func (f *flight) hurry(idx *toc.Index) {
	q := f.req
	if q.priority != background {
		return
	}
	if idx.Members[f.member].Offset-q.at.Load() > cutDistance {
		q.cut.Store(true)
	}
	if !q.hurried {
		q.hurried = true
		close(q.urgent)
	}
}

// extend takes missing members from next on: all with content before the address until,
// those in the next window compressed bytes, and those which a request grows by to
// Options.Coalesce.
func (b *batch) extend(next int, until, window int64) {
	l := b.l
	upto := next
	if until > 0 {
		upto = l.memberAt(until-1) + 1 // the one that holds the last byte, too
	}
	ahead, coalesce := int64(0), int64(0)
	if next > 0 {
		last := &l.idx.Members[next-1]
		coalesce = l.coalesce(l.idx.Chunks[last.First+last.Count-1].Addr)
	}
	for m := next; m < len(l.idx.Members); m++ {
		size := l.idx.Members[m].Size
		// Content in another order than the blob could make upto mean anything:
		// the bytes are bounded as well.
		wanted := (m < upto || ahead+size <= window) && ahead+size <= l.o.ReadAhead
		if !wanted && (b.last == nil || b.last.end-b.last.start+size > coalesce) {
			return
		}
		f := l.flights[m]
		if f == nil && !l.cached(m) && !l.coming(m) {
			f = b.add(m)
			ahead += size
		} else if !wanted {
			return
		}
		if wanted && f != nil {
			b.want(f, false)
		}
	}
}

// add puts a member into the last request, or a new one when it is too far away.
func (b *batch) add(m int) *flight {
	x := &b.l.idx.Members[m]
	q := b.last
	if q == nil || x.Offset < q.end || x.Offset-q.end > b.gap ||
		b.priority == demand && q.end-q.start+x.Size > maxPart && q.end > q.start || b.l.flying(q.next, m) {
		q = &request{priority: b.priority, beside: b.beside, start: x.Offset, urgent: make(chan struct{})}
		q.at.Store(x.Offset)
		b.requests = append(b.requests, q)
		b.last = q
	}
	f := &flight{member: m, req: q, done: make(chan struct{}), stored: make(chan struct{})}
	q.flights = append(q.flights, f)
	q.end, q.next = x.Offset+x.Size, m+1
	b.l.flights[m] = f
	return f
}

// flying says whether a member of [from, to) is being fetched: a request must
// not reach across it.
func (l *Layer) flying(from, to int) bool {
	for m := from; m < to; m++ {
		if l.flights[m] != nil {
			return true
		}
	}
	return false
}

// readMissing fills the parts of p that lie in the chunks misses, which were
// not in the cache.
func (l *Layer) readMissing(ctx context.Context, p []byte, off int64, misses []int, until int64) error {
	l.stats.waited.Add(1)
	began := time.Now()
	defer func() { l.stats.wait.Add(int64(time.Since(began))) }()
	misses, err := l.awaitSupply(ctx, p, off, misses)
	if err != nil {
		return err
	}
	if len(misses) == 0 {
		return nil
	}
	// Not before: who brings chunks gives way to the demand that the gate counts.
	l.o.Gate.Enter()
	defer l.o.Gate.Leave()
	l.waits.enter()
	defer l.waits.leave()
	need := make([]int, 0, len(misses))
	for _, c := range misses {
		need = append(need, l.idx.Chunks[c].Member)
	}
	slices.Sort(need)
	need = slices.Compact(need)
	tickets, err := l.claim(need, 0, until, demand)
	if err != nil {
		return err
	}
	end := off + int64(len(p))
	for _, i := range misses {
		c := &l.idx.Chunks[i]
		from, to := max(off, c.Addr), min(end, c.Addr+c.Size)
		k, _ := slices.BinarySearch(need, c.Member)
		if err := l.await(ctx, tickets[k], i, p[from-off:to-off], from-c.Addr); err != nil {
			return err
		}
	}
	return nil
}

// await fills p from off within chunk i as soon as its member is there.
func (l *Layer) await(ctx context.Context, t ticket, i int, p []byte, off int64) error {
	joined := false
	for range maxTries {
		if t.f == nil {
			if ok, err := l.readChunk(i, p, off); ok || err != nil {
				return err
			}
		} else {
			select {
			case <-t.f.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			err := t.f.err
			if err == nil {
				copy(p, t.f.chunks[i-l.idx.Members[t.member].First][off:])
				return nil
			}
			// Who joined a request that failed may ask once itself; a request
			// that was cut short did not fail.
			if !errors.Is(err, errCut) {
				if t.own || joined || errors.Is(err, ErrClosed) {
					return err
				}
				joined = true
			}
		}
		again, err := l.claim([]int{t.member}, 0, 0, demand)
		if err != nil {
			return err
		}
		t = again[0]
	}
	return errUnsteady
}

// unkept is settled flights that the cache did not take, the oldest first.
type unkept struct {
	order []*flight
	bytes int64
}

// keepInMemory lets a flight stay joinable although it is settled; mu is held.
func (l *Layer) keepInMemory(f *flight) {
	l.unkept.order = append(l.unkept.order, f)
	l.unkept.bytes += int64(len(f.buf))
	for l.unkept.bytes > maxUnkept {
		l.forget(0)
	}
}

// forget drops the k-th unkept flight; mu is held.
func (l *Layer) forget(k int) {
	f := l.unkept.order[k]
	l.unkept.order = slices.Delete(l.unkept.order, k, k+1)
	l.unkept.bytes -= int64(len(f.buf))
	delete(l.flights, f.member)
}

// keepAgain gives the cache another chance to take an unkept flight.
func (l *Layer) keepAgain(f *flight) error {
	if err := l.keep(f); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := slices.Index(l.unkept.order, f); k >= 0 {
		l.forget(k)
	}
	return nil
}
