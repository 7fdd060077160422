package startup

import (
	"cmp"
	"runtime"
	"slices"
	"time"

	"github.com/apparate/apparate/api/profile"
)

const (
	// recordFor is how long after its first container was created a start is recorded.
	recordFor = 20 * time.Second
	// quietFor ends it sooner: no new chunk was read for so long.
	quietFor = 5 * time.Second
	// lookEvery is how often that is looked at.
	lookEvery = 250 * time.Millisecond
)

// watch waits for the end of a recording and keeps the sample.
func (st *start) watch() {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	last, seen := time.Now(), -1
	for {
		select {
		case <-st.e.ctx.Done():
			return
		case <-t.C:
		}
		n := st.recorded()
		if n != seen {
			last, seen = time.Now(), n
		}
		if n < 0 {
			return // dropped
		}
		if time.Since(st.createdAt()) >= recordFor || time.Since(last) >= quietFor {
			break
		}
	}
	s := st.finish()
	st.e.finished(st)
	if len(s.Layers) == 0 {
		return
	}
	if err := st.e.samples.add(s); err != nil {
		st.e.log.Warn("sample of a start is not kept", "image", st.ref, "error", err)
	}
}

func (st *start) createdAt() time.Time {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.created
}

// recorded is how many chunks were read, -1 when the start is over.
func (st *start) recorded() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over {
		return -1
	}
	n := 0
	for _, p := range st.parts {
		if p.rec != nil {
			n += p.rec.Len()
		}
	}
	return n
}

// finish ends the start and returns its sample.
func (st *start) finish() profile.Sample {
	st.mu.Lock()
	defer st.mu.Unlock()
	s := profile.Sample{
		Image: st.repo, Manifest: st.manifest.String(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Started: st.mounted.UTC(), DurationMillis: time.Since(st.mounted).Milliseconds(),
	}
	room := profile.MaxChunks
	var used int64
	slices.SortFunc(st.parts, func(a, b *part) int {
		return cmp.Compare(st.order[a.src.Digest], st.order[b.src.Digest])
	})
	for _, p := range st.parts {
		if p.rec == nil || len(s.Layers) == profile.MaxSampleLayers {
			continue
		}
		l := profile.SampleLayer{Digest: p.src.Digest.String(), TOCDigest: p.src.TOCDigest.String()}
		for _, r := range p.rec.Reads(0) {
			sum, size := p.l.Chunk(r.Chunk)
			if st.stream != nil && st.stream.has(sum) {
				used += size
			}
			if room > 0 {
				room--
				l.Add(sum, st.sinceCreated(p.rec.Began().Add(r.At)))
			}
		}
		if l.Len() > 0 {
			s.Layers = append(s.Layers, l)
		}
	}
	if st.stream != nil {
		read, hit := st.judgeLocked()
		st.e.metrics.judged(st.stream, read, hit, used)
	}
	st.endLocked()
	c := &st.final
	if c.PackBytes > 0 {
		s.Profile = c.Profile
	}
	s.Outcome = profile.Outcome{
		Requests: c.DemandRequests + c.BackgroundRequests, FetchedBytes: c.DemandBytes + c.BackgroundBytes, PackBytes: c.PackBytes,
		WaitedReads: c.WaitedReads, WaitMillis: c.WaitMillis,
	}
	return s
}

// sinceCreated is a time as samples have it, in milliseconds.
func (st *start) sinceCreated(t time.Time) uint32 {
	return uint32(min(max(t.Sub(st.created).Milliseconds(), 0), 1<<31))
}
