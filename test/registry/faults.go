package registry

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Fault is a wrong answer to a blob request.
type Fault string

// The faults. A registry that redirects answers a fault by itself.
const (
	// WholeBody200 sends the whole blob with status 200, whatever the range.
	WholeBody200 Fault = "whole body, 200"
	// ShortBody sends the right header and a body that ends cleanly half-way.
	ShortBody Fault = "short body"
	// CutOff breaks the connection half-way.
	CutOff Fault = "cut off"
	// Stall sends half of the body and then nothing, on an open connection.
	Stall Fault = "stall"
	// Hang sends nothing at all, on an open connection.
	Hang Fault = "hang"
	// Reset breaks the connection before the first byte.
	Reset Fault = "reset"
	// Slow sends the right answer in small pieces with pauses.
	Slow Fault = "slow"
	// FlippedByte sends the right answer with one wrong byte in the middle.
	FlippedByte Fault = "flipped byte"
	// WrongRange sends the right header with the bytes of another range.
	WrongRange Fault = "wrong range"
	// WrongContentRange sends another range and says so.
	WrongContentRange Fault = "wrong Content-Range"
	// Multipart sends the range as the only part of a multipart body.
	Multipart Fault = "multipart"
	// Unauthorized is 401.
	Unauthorized Fault = "401"
	// RedirectExpired is the 403 of a storage service whose signed URL ran out.
	RedirectExpired Fault = "403, expired"
	// NotFound is 404.
	NotFound Fault = "404"
	// TooManyRequests is 429 with "Retry-After: 1".
	TooManyRequests Fault = "429"
	// ServerError is 503.
	ServerError Fault = "503"
)

// Faults are all faults.
func Faults() []Fault {
	return []Fault{
		WholeBody200, ShortBody, CutOff, Stall, Hang, Reset, Slow, FlippedByte, WrongRange,
		WrongContentRange, Multipart, Unauthorized, RedirectExpired, NotFound, TooManyRequests, ServerError,
	}
}

// Lies says whether the answer looks right and is not: only the digest of the
// content can tell.
func (f Fault) Lies() bool { return f == FlippedByte || f == WrongRange }

// plan decides which blob request goes wrong. Every GET of a blob counts, at the
// registry and at the storage host alike, also one that is only redirected or challenged.
type plan struct {
	mu    sync.Mutex
	count int
	at    map[int]Fault
	every int
	fault Fault
}

func (p *plan) next() Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.count
	p.count++
	if f, ok := p.at[i]; ok {
		return f
	}
	if p.every > 0 && (i+1)%p.every == 0 {
		return p.fault
	}
	return ""
}

// FailAt makes the i-th blob request since New or Heal go wrong, the first being 0.
func (r *Registry) FailAt(i int, f Fault) {
	r.plan.mu.Lock()
	defer r.plan.mu.Unlock()
	r.plan.at[i] = f
}

// FailEvery makes every n-th blob request go wrong, each of them if n is 1.
func (r *Registry) FailEvery(n int, f Fault) {
	r.plan.mu.Lock()
	defer r.plan.mu.Unlock()
	r.plan.every, r.plan.fault = n, f
}

// Heal removes all faults and counts blob requests from 0 again.
func (r *Registry) Heal() {
	r.plan.mu.Lock()
	defer r.plan.mu.Unlock()
	r.plan.count, r.plan.at, r.plan.every = 0, map[int]Fault{}, 0
}

// Count is how many blob requests came since New or Heal.
func (r *Registry) Count() int {
	r.plan.mu.Lock()
	defer r.plan.mu.Unlock()
	return r.plan.count
}

// fail answers with f. data is the blob.
func (r *Registry) fail(w *recorder, req *http.Request, f Fault, data []byte) {
	switch f {
	case Hang:
		r.hang(req)
		panic(http.ErrAbortHandler)
	case Reset:
		panic(http.ErrAbortHandler)
	case Unauthorized:
		r.challenge(w, req)
	case RedirectExpired:
		storeError(w, http.StatusForbidden, "AccessDenied", "Request has expired")
	case NotFound:
		ociError(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
	case TooManyRequests:
		w.Header().Set("Retry-After", "1")
		ociError(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "slow down")
	case ServerError:
		ociError(w, http.StatusServiceUnavailable, "UNAVAILABLE", "down for a moment")
	case WholeBody200:
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(data) // the client may well leave
	default:
		r.failBody(w, req, f, data)
	}
}

// failBody sends one range of data with something wrong in it.
func (r *Registry) failBody(w *recorder, req *http.Request, f Fault, data []byte) {
	var start, end int64
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &start, &end); err != nil ||
		start < 0 || start > end || end >= int64(len(data)) {
		ociError(w, http.StatusRequestedRangeNotSatisfiable, "RANGE", "faults are for plain ranges inside the blob")
		return
	}
	part := append([]byte(nil), data[start:end+1]...)
	h := w.Header()
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end, len(data)))
	h.Set("Content-Length", strconv.Itoa(len(part)))
	half := part[:len(part)/2]
	switch f {
	case ShortBody:
		h.Del("Content-Length") // chunked: the end is a clean one
		w.send(half)
		return
	case CutOff:
		w.send(half)
		panic(http.ErrAbortHandler)
	case Stall:
		w.send(half)
		r.hang(req)
		panic(http.ErrAbortHandler)
	case Slow:
		r.drip(w, req, part)
		return
	case FlippedByte:
		part[len(part)/2] ^= 0xff
	case WrongRange:
		for i := range part {
			part[i] = data[(start+int64(i)+1)%int64(len(data))]
		}
	case WrongContentRange:
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start+1, end+1, len(data)))
	case Multipart:
		body := fmt.Sprintf("--x\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%s\r\n--x--\r\n", start, end, len(data), part)
		h.Set("Content-Type", "multipart/byteranges; boundary=x")
		h.Del("Content-Range")
		h.Set("Content-Length", strconv.Itoa(len(body)))
		part = []byte(body)
	default:
		panic(fmt.Sprintf("test/registry: no such fault: %q", f))
	}
	w.send(part)
}

// hang waits until the client goes or the test ends.
func (r *Registry) hang(req *http.Request) {
	select {
	case <-req.Context().Done():
	case <-r.done:
	}
}

// drip sends part in sixteen pieces with a pause after each.
func (r *Registry) drip(w *recorder, req *http.Request, part []byte) {
	step := max(1, len(part)/16)
	for len(part) > 0 {
		n := min(step, len(part))
		w.send(part[:n])
		part = part[n:]
		select {
		case <-time.After(2 * time.Millisecond):
		case <-req.Context().Done():
			return
		case <-r.done:
			return
		}
	}
}
