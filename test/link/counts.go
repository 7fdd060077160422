package link

import (
	"bytes"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Traffic is what has passed of one kind of request: how many, and the bytes of
// their answers, headers included.
type Traffic struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// Counts are the traffic of a registry by what was asked for. Other is what is not
// of the distribution API's objects: pings, tokens, and whatever is not HTTP/1.1.
type Counts struct {
	Manifests Traffic `json:"manifests"`
	Blobs     Traffic `json:"blobs"`
	Referrers Traffic `json:"referrers"`
	Other     Traffic `json:"other"`
}

// Sub returns what has come to c since it was old.
func (c Counts) Sub(old Counts) Counts {
	sub := func(a, b Traffic) Traffic { return Traffic{a.Requests - b.Requests, a.Bytes - b.Bytes} }
	return Counts{sub(c.Manifests, old.Manifests), sub(c.Blobs, old.Blobs), sub(c.Referrers, old.Referrers), sub(c.Other, old.Other)}
}

// All is the sum of all kinds.
func (c Counts) All() Traffic {
	return Traffic{
		c.Manifests.Requests + c.Blobs.Requests + c.Referrers.Requests + c.Other.Requests,
		c.Manifests.Bytes + c.Blobs.Bytes + c.Referrers.Bytes + c.Other.Bytes,
	}
}

// kind is one of the fields of Counts.
type kind int

const (
	other kind = iota
	manifest
	blob
	referrers
)

// meter counts for all connections.
type meter struct {
	mu     sync.Mutex
	counts Counts
}

func (m *meter) add(k kind, t Traffic) {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := &m.counts.Other
	switch k {
	case manifest:
		to = &m.counts.Manifests
	case blob:
		to = &m.counts.Blobs
	case referrers:
		to = &m.counts.Referrers
	case other:
	}
	to.Requests += t.Requests
	to.Bytes += t.Bytes
}

func (m *meter) read() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts
}

// maxHead is how long the head of a request may be; after a longer one the
// connection is not looked into any more.
const maxHead = 64 << 10

// heads reads the requests of one HTTP/1.1 connection as they pass. Bodies of a
// known length are skipped. With any other, and with what is not HTTP, it gives up
// and counts bytes only.
type heads struct {
	meter     *meter
	firstByte time.Duration

	mu   sync.Mutex
	now  kind   // of the request that is being answered
	head []byte // of the request that is coming
	body int64  // bytes of a request's body that are still to come
	deaf bool
}

// request looks at bytes from the client and returns how much longer than others
// they take.
func (h *heads) request(b []byte) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	var late time.Duration
	for len(b) > 0 && !h.deaf {
		if skip := min(h.body, int64(len(b))); skip > 0 {
			b, h.body = b[skip:], h.body-skip
			continue
		}
		had := len(h.head)
		h.head = append(h.head, b...)
		end := bytes.Index(h.head[max(0, had-3):], []byte("\r\n\r\n"))
		if end < 0 {
			h.deaf = len(h.head) > maxHead || !plausible(h.head)
			break
		}
		end += max(0, had-3) + 4
		b = b[end-had:]
		k, isGet, length, ok := parseHead(string(h.head[:end]))
		h.head = h.head[:0]
		if !ok {
			h.deaf = true
			break
		}
		h.now, h.body = k, length
		h.meter.add(k, Traffic{Requests: 1})
		if k == blob && isGet {
			late = h.firstByte
		}
	}
	if h.deaf {
		h.head, h.now = nil, other
	}
	return late
}

// answer counts n bytes from the registry for the request they answer.
func (h *heads) answer(n int) {
	h.mu.Lock()
	k := h.now
	h.mu.Unlock()
	h.meter.add(k, Traffic{Bytes: int64(n)})
}

// plausible says whether b can be the beginning of a request.
func plausible(b []byte) bool { return b[0] >= 'A' && b[0] <= 'Z' }

// parseHead reads the head of a request: what it asks for, whether it is a GET, and
// the length of its body; ok is false where that cannot be known.
func parseHead(head string) (k kind, isGet bool, length int64, ok bool) {
	line, rest, _ := strings.Cut(head, "\r\n")
	f := strings.Fields(line)
	if len(f) != 3 || !strings.HasPrefix(f[2], "HTTP/1.") || !strings.HasPrefix(f[1], "/") {
		return other, false, 0, false
	}
	for field := range strings.SplitSeq(rest, "\r\n") {
		name, value, _ := strings.Cut(field, ":")
		switch strings.ToLower(name) {
		case "content-length":
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil || n < 0 {
				return other, false, 0, false
			}
			length = n
		case "transfer-encoding", "upgrade":
			return other, false, 0, false
		}
	}
	path, _, _ := strings.Cut(f[1], "?")
	switch {
	case strings.Contains(path, "/blobs/sha"):
		k = blob
	case strings.Contains(path, "/manifests/"):
		k = manifest
	case strings.Contains(path, "/referrers/"):
		k = referrers
	}
	return k, f[0] == "GET", length, true
}
