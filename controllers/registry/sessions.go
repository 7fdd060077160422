package registry

import (
	"context"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/match"
	oci "github.com/apparate/apparate/converter/registry"
)

// Sessions keeps one session for each Registry, for as long as its settings stay
// the same, so that connections, tokens and the pace of requests are shared by
// all that speak to it: notifications, scans and checks.
type Sessions struct {
	Store *Store
	// Limit is the pace of each session.
	Limit oci.SessionLimit

	mu   sync.Mutex
	open map[match.Key]opened
}

type opened struct {
	session  *oci.Session
	revision string
}

// Get returns the session of a Registry. Mistakes in what it refers to are of
// type *SecretError.
func (s *Sessions) Get(ctx context.Context, r *v1alpha1.Registry) (*oci.Session, error) {
	session, _, err := s.get(ctx, r)
	return session, err
}

func (s *Sessions) get(ctx context.Context, r *v1alpha1.Registry) (*oci.Session, string, error) {
	access, err := s.Store.Access(ctx, r)
	if err != nil {
		return nil, "", err
	}
	key := client.ObjectKeyFromObject(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.open[key]; ok && o.revision == access.Revision {
		return o.session, o.revision, nil
	}
	session, err := oci.NewSession(access.Options, r.Host(), s.Limit)
	if err != nil {
		return nil, "", err
	}
	if s.open == nil {
		s.open = map[match.Key]opened{}
	}
	s.open[key] = opened{session, access.Revision}
	return session, access.Revision, nil
}

// Forget drops the session of a Registry.
func (s *Sessions) Forget(key match.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, key)
}
