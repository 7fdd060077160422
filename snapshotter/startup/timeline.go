package startup

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
)

// Timeline is one start of an image as GET /starts shows it.
type Timeline struct {
	// Image is its name as it was pulled, Manifest the digest of its manifest.
	Image    string        `json:"image"`
	Manifest digest.Digest `json:"manifest"`
	// Began is when its first layer was asked for.
	Began time.Time `json:"began"`
	// Events are when something happened for the first time, in milliseconds since
	// Began: manifest, looked (it is known whether there is a profile), layers (all
	// indexes are there), merged, built, mounted, created (the first container),
	// packFirstByte, packDone. When the program is ready is not known here.
	Events map[string]float64 `json:"events"`
	// Over says that the counters do not change any more.
	Over bool `json:"over"`
	Counters
}

// Counters are what a start cost until now, or until its recording ended. Layers that
// other images read at the same time are counted for each.
type Counters struct {
	// Profile is the digest of the pack that is or was streamed, "" without; Origin
	// where its table is from: registry, kept (on this node), repository (of another
	// image). Ended is why the stream ended before all was there, "" while it has not.
	Profile string `json:"profile,omitempty"`
	Origin  string `json:"origin,omitempty"`
	Ended   string `json:"ended,omitempty"`
	// ChunksRead are the chunks that were read, ProfileHits those in the table.
	ChunksRead  int `json:"chunksRead"`
	ProfileHits int `json:"profileHits"`
	// DemandRequests were made because a program waited, BackgroundRequests were not.
	DemandRequests     int64 `json:"demandRequests"`
	BackgroundRequests int64 `json:"backgroundRequests"`
	// WaitedReads are reads that were not answered from the cache, WaitMillis what
	// those waited, added up, and PackWaitMillis the part of it that was for the pack.
	WaitedReads    int64 `json:"waitedReads"`
	WaitMillis     int64 `json:"waitMillis"`
	PackWaitMillis int64 `json:"packWaitMillis"`
	// Overtaken are reads that did not wait for the pack any longer.
	Overtaken int64 `json:"overtaken"`
	// Bytes from the registry, by what they were fetched for.
	DemandBytes     int64 `json:"demandBytes"`
	BackgroundBytes int64 `json:"backgroundBytes"`
	PackBytes       int64 `json:"packBytes"`
	// DecodeMillis were spent decompressing and hashing, PackDecodeMillis those for
	// the pack; workers are added up.
	DecodeMillis     int64 `json:"decodeMillis"`
	PackDecodeMillis int64 `json:"packDecodeMillis"`
}

// countLocked adds up what the start cost until now.
func (st *start) countLocked() Counters {
	if st.over {
		return st.final
	}
	var c Counters
	var wait, supply, decode time.Duration
	for _, p := range st.parts {
		s := p.l.Stats()
		c.DemandRequests += s.DemandRequests - p.base.DemandRequests
		c.BackgroundRequests += s.BackgroundRequests - p.base.BackgroundRequests
		c.WaitedReads += s.WaitedReads - p.base.WaitedReads
		c.DemandBytes += s.DemandBytes - p.base.DemandBytes
		c.BackgroundBytes += (s.FetchedBytes - s.DemandBytes) - (p.base.FetchedBytes - p.base.DemandBytes)
		wait += s.WaitTime - p.base.WaitTime
		supply += s.SupplyWait - p.base.SupplyWait
		decode += s.DecodeTime - p.base.DecodeTime
		if p.rec != nil {
			c.ChunksRead += p.rec.Len()
		}
	}
	if s := st.stream; s != nil {
		c.Profile, c.Origin, c.Ended = s.table.Pack, st.found.origin, st.outcome
		c.PackBytes, c.Overtaken = s.received.Load(), s.stats.overtaken.Load()
		packed := time.Duration(s.stats.decode.Load())
		c.PackDecodeMillis = packed.Milliseconds()
		decode += packed
		_, c.ProfileHits = st.judgeLocked()
	}
	c.WaitMillis, c.PackWaitMillis, c.DecodeMillis = wait.Milliseconds(), supply.Milliseconds(), decode.Milliseconds()
	return c
}

// timeline is what the start shows of itself.
func (st *start) timeline() Timeline {
	st.mu.Lock()
	defer st.mu.Unlock()
	t := Timeline{Image: st.ref, Manifest: st.manifest, Began: st.began, Events: map[string]float64{}, Over: st.over, Counters: st.countLocked()}
	for name, at := range st.events {
		t.Events[name] = float64(at.Microseconds()) / 1000
	}
	return t
}

// Starts returns the latest starts, the oldest first.
func (e *Engine) Starts() []Timeline {
	e.mu.Lock()
	recent := append([]*start(nil), e.recent...)
	e.mu.Unlock()
	list := make([]Timeline, 0, len(recent))
	for _, st := range recent {
		list = append(list, st.timeline())
	}
	return list
}

// ServeStarts answers with Starts as JSON.
func (e *Engine) ServeStarts(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(e.Starts()) // whoever asked has gone away
}

// ServeSamples answers with the kept samples as a JSON array, the oldest first. The
// query's since, a time in RFC 3339, leaves out those that were recorded before it: who
// asks every few seconds need not read all of them each time.
func (e *Engine) ServeSamples(w http.ResponseWriter, r *http.Request) {
	var since time.Time
	if text := r.URL.Query().Get("since"); text != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, text); err != nil {
			http.Error(w, "since is a time such as 2006-01-02T15:04:05Z", http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := e.samples.write(w, since); err != nil {
		e.log.Debug("samples were not served", "error", err) // cut short: whoever asked sees it
	}
}
