package layer

const (
	// minSweep is how many requests in a row must follow each other in the blob until the
	// next one grows: chance makes two.
	minSweep = 2
	// maxSweep is how often it doubles then.
	maxSweep = 4
)

// sweeps notices readers that go through many files in the order of the blob, each of them
// too short to be read ahead of. Guarded by Layer.mu.
type sweeps struct {
	all   [streams]sweep
	clock uint64
}

// sweep is requests of readers that follow each other in the blob.
type sweep struct {
	next   int // the member behind the last one
	run    int // requests so far
	used   uint64
	window int64 // compressed bytes that the next request shall bring
}

// sweep returns the sweep that the first request of a batch belongs to; a new one, in the
// place of the one heard of the longest time ago, where it follows none. A batch without
// requests has one that nobody keeps.
func (b *batch) sweep() *sweep {
	if len(b.requests) == 0 {
		return &sweep{}
	}
	l := b.l
	first := b.requests[0].flights[0].member
	l.sweeps.clock++
	oldest := &l.sweeps.all[0]
	for i := range l.sweeps.all {
		s := &l.sweeps.all[i]
		if s.run > 0 && l.follows(s.next, first) {
			s.used = l.sweeps.clock
			s.window = l.sweepWindow(s.run, first)
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = sweep{used: l.sweeps.clock}
	return oldest
}

// on notes the last request of the batch.
func (s *sweep) on(q *request) {
	if q != nil {
		s.next = q.next
		s.run++
	}
}

// follows says that nothing is missing between two members.
func (l *Layer) follows(next, first int) bool {
	if first < next || first-next > maxSkipped {
		return false
	}
	for m := next; m < first; m++ {
		if !l.cached(m) {
			return false
		}
	}
	return true
}

// maxSkipped bounds the members that are looked at between two requests.
const maxSkipped = 64

// sweepWindow is how many bytes a request brings after so many others, from a member on. Huge
// files are not swept through: see hugeFile.
func (l *Layer) sweepWindow(run, member int) int64 {
	addr := l.idx.Chunks[l.idx.Members[member].First].Addr
	if x, ok := l.ahead.file(addr); run < minSweep || ok && x.huge() {
		return 0
	}
	return min(l.coalesce(addr)<<min(run-minSweep+1, maxSweep), l.o.ReadAhead)
}
