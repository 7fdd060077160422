package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/apparate/apparate/controllers/watch/dialect"
)

// PathPrefix is where notifications are taken; behind it come the namespace and
// the name of a Registry.
const PathPrefix = "/v1/notifications/"

// Bounds of what is taken from anybody who can reach the endpoint.
const (
	// MaxNotification is the largest body, in bytes.
	MaxNotification = 1 << 20
	// maxAge is how old an event may be: senders try again for hours.
	maxAge = 24 * time.Hour
	// maxAhead is how far a sender's clock may be ahead of ours.
	maxAhead = 10 * time.Minute
	// maxWorking is how many notifications are worked on at once.
	maxWorking = 64
	// workLimit is how long one may take; senders give up after about ten seconds.
	workLimit = 8 * time.Second
)

// Verdict is what became of a notification; it labels the metric.
type Verdict string

// The verdicts.
const (
	Accepted        Verdict = "accepted"
	Ignored         Verdict = "ignored" // understood, and no push
	Replayed        Verdict = "replayed"
	Stale           Verdict = "stale"
	Unauthenticated Verdict = "unauthenticated"
	Unknown         Verdict = "unknown" // no dialect that is known
	Malformed       Verdict = "malformed"
	Oversized       Verdict = "oversized"
	Busy            Verdict = "busy"
	Failed          Verdict = "failed" // the registry or Kubernetes did not answer
)

// Receiver is the HTTP handler for the notifications of registries.
//
// A notification is answered when it was followed: the sender keeps it until
// there is an object that outlives this process. Answers are
//
//	202  followed; the body says what became of each push
//	208  seen before: not followed again. Senders that try again until they get
//	     a 2xx would otherwise never stop.
//	400  not understood · 401 no or a wrong token · 413 too large · 422 malformed
//	503  cannot be followed now; try again
type Receiver struct {
	// Secrets returns the tokens of a Registry; none means that it takes no
	// notifications. Any error may pass.
	Secrets func(context.Context, types.NamespacedName) ([][]byte, error)
	// Report takes pushes.
	Report Report
	// Lost is told of a Registry of which a notification could not be followed,
	// for a look at the registry itself. It must not block.
	Lost func(types.NamespacedName)
	// Count is told of each event, or of each notification that has none: its
	// dialect ("" if it was not recognised) and verdict.
	Count func(dialect.Name, Verdict)
	// Now is the clock.
	Now func() time.Time

	once    sync.Once
	working chan struct{}
	seen    replays
}

// reply is the body of an answer.
type reply struct {
	Verdict Verdict `json:"verdict"`
	Message string  `json:"message,omitempty"`
	Pushes  []push  `json:"pushes,omitempty"`
}

// push is what became of one push.
type push struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	Outcome
}

// ServeHTTP implements http.Handler.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.once.Do(func() { r.working = make(chan struct{}, maxWorking) })
	key, ok := registryOf(req.URL.Path)
	switch {
	case !ok:
		http.NotFound(w, req)
		return
	case req.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "notifications are sent with POST", http.StatusMethodNotAllowed)
		return
	}
	select {
	case r.working <- struct{}{}:
		defer func() { <-r.working }()
	default:
		r.refuse(w, "", http.StatusServiceUnavailable, Busy, "too many notifications at once: try again")
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), workLimit)
	defer cancel()
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, MaxNotification))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			r.refuse(w, "", http.StatusRequestEntityTooLarge, Oversized, fmt.Sprintf("a notification has at most %d bytes", MaxNotification))
			return
		}
		r.refuse(w, "", http.StatusBadRequest, Malformed, "the body broke off")
		return
	}
	if !r.authenticated(ctx, w, req, key, body) {
		return
	}
	m, err := dialect.Parse(req.Header, body)
	var malformed *dialect.MalformedError
	switch {
	case errors.As(err, &malformed):
		r.refuse(w, malformed.Dialect, http.StatusUnprocessableEntity, Malformed, err.Error())
	case err != nil:
		r.refuse(w, "", http.StatusBadRequest, Unknown, err.Error())
	case len(m.Pushes) == 0:
		r.answer(w, m.Dialect, http.StatusAccepted, reply{Verdict: Ignored, Message: "it tells of no push of a tag"}, 1)
	default:
		r.follow(ctx, w, key, m, body)
	}
}

// registryOf reads "/v1/notifications/namespace/name".
func registryOf(path string) (types.NamespacedName, bool) {
	rest, ok := strings.CutPrefix(path, PathPrefix)
	namespace, name, two := strings.Cut(strings.TrimSuffix(rest, "/"), "/")
	return types.NamespacedName{Namespace: namespace, Name: name},
		ok && two && namespace != "" && name != "" && !strings.Contains(name, "/")
}

// authenticated checks the token, and answers where it is not right. An unknown
// Registry gets the same answer as a wrong token: it is nobody's business which
// there are.
func (r *Receiver) authenticated(ctx context.Context, w http.ResponseWriter, req *http.Request, key types.NamespacedName, body []byte) bool {
	secrets, err := r.Secrets(ctx, key)
	if err != nil {
		log.FromContext(ctx).Error(err, "reading the token for notifications", "registry", key.String())
		r.refuse(w, "", http.StatusServiceUnavailable, Failed, "the token cannot be compared now: try again")
		return false
	}
	if _, err := dialect.Verify(req.Header, req.URL.Query(), body, secrets); err != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		r.refuse(w, "", http.StatusUnauthorized, Unauthenticated,
			"no such Registry with spec.webhook, or not its token: send it as \"Authorization: Bearer <token>\", as ?token=<token>, or sign with it as GitHub does")
		return false
	}
	return true
}

// follow reports the pushes of a notification.
func (r *Receiver) follow(ctx context.Context, w http.ResponseWriter, key types.NamespacedName, m dialect.Message, body []byte) {
	out := reply{Verdict: Replayed}
	for i, p := range m.Pushes {
		id := eventID(key, m.Dialect, p, i, body, r.Now())
		if verdict := r.fresh(id, p.Time); verdict != Accepted {
			r.Count(m.Dialect, verdict)
			out.Message = string(verdict) + ": " + p.Repository + ":" + p.Tag
			continue
		}
		o, err := r.Report(ctx, Push{Registry: key, Repository: p.Repository, Tag: p.Tag, Digest: p.Digest, Origin: Webhook})
		if err != nil {
			r.seen.forget(id)
			log.FromContext(ctx).Error(err, "following a notification", "registry", key.String(), "repository", p.Repository, "tag", p.Tag)
			r.Lost(key)
			w.Header().Set("Retry-After", "5")
			r.refuse(w, m.Dialect, http.StatusServiceUnavailable, Failed, "it cannot be followed now: try again")
			return
		}
		out.Verdict = Accepted
		out.Pushes = append(out.Pushes, push{p.Repository, p.Tag, o})
		r.Count(m.Dialect, Accepted)
	}
	code := http.StatusAccepted
	if out.Verdict == Replayed {
		code = http.StatusAlreadyReported
	}
	r.answer(w, m.Dialect, code, out, 0)
}

// fresh says whether an event may be followed, and notes that it is.
func (r *Receiver) fresh(id string, at time.Time) Verdict {
	now := r.Now()
	if !at.IsZero() && (now.Sub(at) > maxAge || at.Sub(now) > maxAhead) {
		return Stale
	}
	if !r.seen.note(id, now) {
		return Replayed
	}
	return Accepted
}

func (r *Receiver) refuse(w http.ResponseWriter, d dialect.Name, code int, v Verdict, message string) {
	r.answer(w, d, code, reply{Verdict: v, Message: message}, 1)
}

// answer writes the reply, and counts it as so many events.
func (r *Receiver) answer(w http.ResponseWriter, d dialect.Name, code int, out reply, events int) {
	for range events {
		r.Count(d, out.Verdict)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(out) // the sender may be gone
}
