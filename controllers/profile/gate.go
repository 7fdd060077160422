package profile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"

	api "github.com/apparate/apparate/api/profile"
)

// Bounds of asking for whose a token is.
const (
	reviewsPerSecond, reviewBurst = 10, 100
	// keepGood is how long an answer is believed: for so long a token works on after its
	// pod has gone. Tokens are replaced about once in 48 minutes.
	keepGood = 5 * time.Minute
	keepBad  = time.Minute
	maxKnown = 10000
	maxToken = 16 << 10
)

// Errors of a Gate; others may pass.
var (
	// ErrStranger is a token that is not that of a node's agent.
	ErrStranger = errors.New("not the token of a node's agent, for the audience " + api.SamplesAudience)
	// ErrTooMany says that too many unknown tokens came at once.
	ErrTooMany = errors.New("too many tokens that were not seen before: try again")
)

// Gate says whose a token is. The answer is the API server's, remembered for a while.
type Gate struct {
	// Review asks the API server, as creating a TokenReview does.
	Review func(context.Context, *authenticationv1.TokenReview) error
	// Account is the service account of the nodes' agents.
	Account types.NamespacedName
	Now     func() time.Time

	once  sync.Once
	limit *rate.Limiter
	mu    sync.Mutex
	known map[[sha256.Size]byte]pass
}

// pass is an answer.
type pass struct {
	node  string // "" for a stranger
	until time.Time
}

// Node returns which node's agent a token belongs to: the name of the node, or of the
// agent's pod where the API server does not tell the node.
func (g *Gate) Node(ctx context.Context, token string) (string, error) {
	g.once.Do(func() {
		g.limit, g.known = rate.NewLimiter(reviewsPerSecond, reviewBurst), map[[sha256.Size]byte]pass{}
	})
	if token == "" || len(token) > maxToken {
		return "", ErrStranger
	}
	id, now := sha256.Sum256([]byte(token)), g.Now()
	g.mu.Lock()
	p, ok := g.known[id]
	g.mu.Unlock()
	if !ok || now.After(p.until) {
		if !g.limit.AllowN(now, 1) {
			return "", ErrTooMany
		}
		node, err := g.ask(ctx, token)
		if err != nil {
			return "", err
		}
		p = pass{node, now.Add(keepGood)}
		if node == "" {
			p.until = now.Add(keepBad)
		}
		g.note(id, p)
	}
	if p.node == "" {
		return "", ErrStranger
	}
	return p.node, nil
}

// note remembers an answer, and forgets old ones.
func (g *Gate) note(id [sha256.Size]byte, p pass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= maxKnown {
		for k, old := range g.known {
			if g.Now().After(old.until) || old.node == "" {
				delete(g.known, k)
			}
		}
	}
	if len(g.known) >= maxKnown {
		clear(g.known) // each costs a review again
	}
	g.known[id] = p
}

// ask asks the API server; "" is a stranger.
func (g *Gate) ask(ctx context.Context, token string) (string, error) {
	r := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{api.SamplesAudience}}}
	if err := g.Review(ctx, r); err != nil {
		return "", fmt.Errorf("asking whose a token is: %w", err)
	}
	s := r.Status
	want := "system:serviceaccount:" + g.Account.Namespace + ":" + g.Account.Name
	// A server that knows no audiences answers without any.
	if !s.Authenticated || s.User.Username != want || !slices.Contains(s.Audiences, api.SamplesAudience) {
		return "", nil
	}
	for _, key := range []string{"authentication.kubernetes.io/node-name", "authentication.kubernetes.io/pod-name"} {
		if v := s.User.Extra[key]; len(v) > 0 && v[0] != "" {
			return v[0], nil
		}
	}
	return want, nil
}
