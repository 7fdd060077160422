package layer

import (
	"cmp"
	"slices"
	"sync"

	"github.com/apparate/apparate/snapshotter/toc"
)

const (
	// slack is how far from the expected place a read may be and still belong to
	// a sequence: the kernel's own read-ahead comes from two threads at times.
	slack = 128 << 10
	// minRun is the length of a sequence that is fetched ahead of, in reads.
	minRun = 3
	// minHuge is the length in bytes of a sequence in a huge file, of which parts are
	// read in sequence by those who go on elsewhere.
	minHuge = 256 << 10
	// streams is how many sequences are followed at the same time.
	streams = 8
)

// readAhead notices sequential reads of large files.
type readAhead struct {
	first, most int64    // windows, in bytes of content
	files       []extent // the files worth it, by address: sequences end with them

	mu      sync.Mutex
	clock   uint64
	streams [streams]stream
}

// extent is the address range of a file.
type extent struct{ addr, end int64 }

// huge says that whoever reads of the file need not read much of it.
func (x extent) huge() bool { return x.end-x.addr > hugeFile }

// stream is one sequence of reads.
type stream struct {
	first  int64 // where it began
	next   int64 // where the next read is expected
	asked  int64 // up to where bytes were asked for
	window int64
	run    int
	used   uint64
}

// newReadAhead finds the files of idx that are longer than one request. It looks
// at chunks alone, as callers keep no entries for long.
func newReadAhead(idx *toc.Index, o Options) *readAhead {
	r := &readAhead{first: 2 * max(o.Coalesce, minCoalesce), most: o.ReadAhead}
	for i := 0; i < len(idx.Chunks); {
		x := extent{idx.Chunks[i].Addr, idx.Chunks[i].Addr + idx.Chunks[i].Size}
		for i++; i < len(idx.Chunks) && !idx.Chunks[i].Begin; i++ {
			x.end = idx.Chunks[i].Addr + idx.Chunks[i].Size
		}
		if x.end-x.addr > r.first {
			r.files = append(r.files, x)
		}
	}
	return r
}

// note takes notice of a read and returns the address up to which the layer
// should fetch now, or 0. It asks when half of the last window is used up.
func (r *readAhead) note(off, n int64) (until int64) {
	file, ok := r.file(off)
	if !ok || r.most == 0 {
		return 0
	}
	end := file.end
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	s := r.find(off)
	if s.used = r.clock; off+n <= s.next {
		return 0 // again, not on
	}
	s.next = off + n
	s.run++
	if s.run < minRun || s.asked >= end || s.window > 0 && s.asked-s.next > s.window/2 {
		return 0
	}
	first := r.first
	if file.huge() {
		if first = min(first, s.next-s.first); first < minHuge {
			return 0
		}
	}
	s.window = min(max(2*s.window, first), r.most)
	if until = min(s.next+s.window, end); until <= s.next {
		return 0
	}
	s.asked = until
	return until
}

// file is the large file at an address.
func (r *readAhead) file(addr int64) (extent, bool) {
	i, found := slices.BinarySearchFunc(r.files, addr, func(x extent, a int64) int { return cmp.Compare(x.addr, a) })
	if !found {
		i--
	}
	if i < 0 || addr >= r.files[i].end {
		return extent{}, false
	}
	return r.files[i], true
}

// find returns the sequence that a read at off continues, or begins one in the
// place of the sequence heard of the longest time ago.
func (r *readAhead) find(off int64) *stream {
	oldest := &r.streams[0]
	for i := range r.streams {
		s := &r.streams[i]
		if s.run > 0 && off >= s.next-slack && off <= s.next+slack {
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{first: off, next: off}
	return oldest
}
