package profile

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"sigs.k8s.io/controller-runtime/pkg/log"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/controllers/serve"
)

// Bounds of what is taken from an agent.
const (
	// MaxSample is the largest sample as JSON, in bytes: what api/profile allows of
	// chunks fits.
	MaxSample = 8 << 20
	// A node may send so many samples at once and so many a second: its daemon keeps 64.
	nodeBurst   = 80
	nodePerSec  = 0.5
	maxNodes    = 20000
	maxDecoding = 2  // samples that are read at once
	maxBraces   = 16 // beside those of its layers
	// slow is how long an agent may take to send one, workLimit how long it waits.
	slow, workLimit = 30 * time.Second, 10 * time.Second
)

// Verdict is what became of a sample; it labels the metric.
type Verdict string

// The verdicts.
const (
	// Taken: it is kept until the profile is made.
	Taken Verdict = "taken"
	// Ignored: nothing is wrong with it, and no profile is wanted for its image.
	Known          Verdict = "known"          // it was sent before
	Foreign        Verdict = "foreign"        // no Registry with acceleration is for its image
	NotAccelerated Verdict = "notAccelerated" // the image is none of ours

	// Refused for good.
	Malformed Verdict = "malformed"
	Oversized Verdict = "oversized"
	// Refused for now.
	Unauthenticated Verdict = "unauthenticated"
	TooMany         Verdict = "tooMany" // of one node
	Busy            Verdict = "busy"
	Failed          Verdict = "failed" // Kubernetes did not answer
	NotLeading      Verdict = "notLeading"
)

// code is the HTTP status for a verdict; snapshotter/agent acts on it.
func (v Verdict) code() int {
	switch v {
	case Taken:
		return http.StatusAccepted
	case Known, Foreign, NotAccelerated:
		return http.StatusOK
	case Malformed:
		return http.StatusUnprocessableEntity
	case Oversized:
		return http.StatusRequestEntityTooLarge
	case Unauthenticated:
		return http.StatusUnauthorized
	case TooMany:
		return http.StatusTooManyRequests
	case NotLeading:
		return http.StatusMisdirectedRequest
	case Busy, Failed:
	}
	return http.StatusServiceUnavailable
}

// Receiver is the HTTP handler for samples. It takes them in the replica that leads,
// from agents of nodes alone, and still believes nothing that they say.
type Receiver struct {
	Gate *Gate
	// Leads says whether this replica does the work.
	Leads func() bool
	// Take takes a sample of a node; size is what it takes in memory, about.
	Take func(ctx context.Context, node string, s *api.Sample, size int64) (Verdict, error)
	// Count is told of each request.
	Count func(Verdict)
	Now   func() time.Time

	once     sync.Once
	decoding chan struct{}
	mu       sync.Mutex
	nodes    map[string]*rate.Limiter
}

// Serve serves samples at a server's address until the context ends.
func (r *Receiver) Serve(ctx context.Context, s *serve.Server) error {
	s.What, s.Slow, s.Work = "samples", slow, workLimit
	mux := http.NewServeMux()
	mux.Handle(api.SamplesPath, r)
	return s.Run(ctx, mux)
}

// ServeHTTP implements http.Handler.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.once.Do(func() { r.decoding, r.nodes = make(chan struct{}, maxDecoding), map[string]*rate.Limiter{} })
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "samples are sent with POST", http.StatusMethodNotAllowed)
		return
	}
	v, err := r.receive(w, req)
	if r.Count != nil {
		r.Count(v)
	}
	if v == Unauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	text := string(v)
	if err != nil {
		text += ": " + err.Error()
		if v == Failed {
			log.FromContext(req.Context()).Error(err, "taking a sample")
			text = string(v) + ": the operator's log tells" // nobody's business
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(v.code())
	_, _ = fmt.Fprintln(w, text) // the sender may be gone
}

// receive takes the sample of a request. Who it is from comes before all else, and
// before a byte of the body.
func (r *Receiver) receive(w http.ResponseWriter, req *http.Request) (Verdict, error) {
	if !r.Leads() {
		return NotLeading, errors.New("another replica takes samples: ask again")
	}
	ctx, cancel := context.WithTimeout(req.Context(), slow)
	defer cancel()
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return Unauthenticated, errors.New("send the agent's token as \"Authorization: Bearer <token>\"")
	}
	node, err := r.Gate.Node(ctx, token)
	switch {
	case errors.Is(err, ErrStranger):
		return Unauthenticated, err
	case errors.Is(err, ErrTooMany):
		return Busy, err
	case err != nil:
		return Failed, err
	case !r.mayNode(node):
		return TooMany, fmt.Errorf("%s sends more than a sample in %v", node, time.Duration(float64(time.Second)/nodePerSec))
	}
	select {
	case r.decoding <- struct{}{}:
		defer func() { <-r.decoding }()
	case <-ctx.Done():
		return Busy, errors.New("too many samples at once")
	}
	s, v, err := decode(w, req)
	if err != nil {
		return v, err
	}
	return r.Take(ctx, node, s, sizeOf(s))
}

// mayNode says whether a node may send a sample now.
func (r *Receiver) mayNode(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.nodes[node]
	if l == nil {
		if len(r.nodes) >= maxNodes {
			clear(r.nodes) // nodes come and go; each begins anew
		}
		l = rate.NewLimiter(nodePerSec, nodeBurst)
		r.nodes[node] = l
	}
	return l.AllowN(r.Now(), 1)
}

// decode reads the sample of a request, of which nothing is believed.
func decode(w http.ResponseWriter, req *http.Request) (*api.Sample, Verdict, error) {
	body := io.Reader(http.MaxBytesReader(w, req.Body, api.MaxSampleBody))
	switch encoding := req.Header.Get("Content-Encoding"); encoding {
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, Malformed, errors.New("it is not compressed with gzip")
		}
		body = z
	case "", "identity":
	default:
		return nil, Malformed, fmt.Errorf("Content-Encoding %.20q is not known", encoding)
	}
	text, err := io.ReadAll(io.LimitReader(body, MaxSample+1))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large), len(text) > MaxSample:
		return nil, Oversized, fmt.Errorf("a sample has at most %d bytes, and %d as it is sent", MaxSample, api.MaxSampleBody)
	case err != nil:
		return nil, Malformed, errors.New("the body broke off, or is not compressed as it says")
	}
	s, err := parse(text)
	if err != nil {
		return nil, Malformed, err
	}
	return s, Taken, nil
}

// parse reads a sample and looks whether it can be one.
func parse(text []byte) (*api.Sample, error) {
	// The smallest layers are three bytes as JSON, and a hundred in memory.
	if bytes.Count(text, []byte("{")) > api.MaxSampleLayers+maxBraces {
		return nil, errors.New("it has more layers than an image")
	}
	s := &api.Sample{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, errors.New("it is not a sample in JSON")
	}
	return s, s.Check()
}

// sizeOf is what a sample takes in memory, about.
func sizeOf(s *api.Sample) int64 {
	const head = 1 << 10
	n := int64(head)
	for _, l := range s.Layers {
		n += int64(cap(l.Chunks)+4*cap(l.At)) + head
	}
	return n
}
