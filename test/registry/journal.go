package registry

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Request is one request that was answered, well or badly.
type Request struct {
	// Server is "registry" or "storage".
	Server string
	Method string
	// Path has no query.
	Path string
	// Range is the Range header, "" without.
	Range string
	// NS is the query parameter "ns" that a mirror gets.
	NS string
	// Header is what the client sent.
	Header http.Header
	// Status is 0 where the connection was broken before one was sent.
	Status int
	// Bytes of body were sent.
	Bytes int64
}

// Line is the request without what differs from run to run:
// "GET blob sha256:0123456789ab bytes=0-99 206 100".
func (q Request) Line() string {
	path := q.Path
	if m := blobPath.FindStringSubmatch(path); m != nil {
		path = "blob " + m[1][:len("sha256:")+12]
	} else if d, ok := strings.CutPrefix(path, "/store/sha256:"); ok {
		path = "storage sha256:" + d[:min(12, len(d))]
	}
	parts := []string{q.Method, path, q.Range, fmt.Sprint(q.Status), fmt.Sprint(q.Bytes)}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

// journal keeps the requests in the order in which they came.
type journal struct {
	mu   sync.Mutex
	list []*Request
}

// Requests returns all requests so far, in the order in which they came.
func (r *Registry) Requests() []Request {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	list := make([]Request, len(r.log.list))
	for i, q := range r.log.list {
		list[i] = *q
	}
	return list
}

// Forget empties the list of requests.
func (r *Registry) Forget() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.log.list = nil
}

// BlobLines are the Line of every blob GET so far, for golden lists. Requests
// that were only redirected or challenged are among them.
func (r *Registry) BlobLines() []string {
	var lines []string
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet && (q.Server == "storage" || blobPath.MatchString(q.Path)) {
			lines = append(lines, q.Line())
		}
	}
	return lines
}

// BlobBytes is how many bytes of blobs were sent.
func (r *Registry) BlobBytes() int64 {
	var n int64
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet && (q.Status == http.StatusOK || q.Status == http.StatusPartialContent) &&
			(q.Server == "storage" || blobPath.MatchString(q.Path)) {
			n += q.Bytes
		}
	}
	return n
}

// recorder notes what is answered.
type recorder struct {
	http.ResponseWriter
	log    *journal
	q      *Request
	status int
	bytes  int64
}

func (r *Registry) record(w http.ResponseWriter, req *http.Request, server string) *recorder {
	q := &Request{
		Server: server, Method: req.Method, Path: req.URL.Path, Range: req.Header.Get("Range"),
		NS: req.URL.Query().Get("ns"), Header: req.Header.Clone(),
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.log.list = append(r.log.list, q)
	return &recorder{ResponseWriter: w, log: &r.log, q: q}
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		w.note()
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	// Before the client can have the last byte and look at the list.
	w.note()
	return n, err
}

// send writes a part of a range and pushes it out.
func (w *recorder) send(p []byte) {
	if w.status == 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if _, err := w.Write(p); err != nil {
		return // the client has left
	}
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

func (w *recorder) note() {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	w.q.Status, w.q.Bytes = w.status, w.bytes
}

func (w *recorder) done() { w.note() }
