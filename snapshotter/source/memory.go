package source

import (
	"sync"
	"time"
)

// memory is what was learnt about the credentials for one repository. It outlives
// the connections to the registry, which are made anew after a refusal.
type memory struct {
	mu      sync.Mutex
	worked  string // the place whose credentials worked last
	refused map[fingerprint]refusedCredential
}

// refusedCredential keeps wrong credentials from being tried for every read.
type refusedCredential struct {
	err   error
	times int
	until time.Time
}

func (m *memory) place() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.worked
}

// accept notes that credentials of a place are good.
func (m *memory) accept(origin string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worked, m.refused = origin, nil
}

// forget makes all places equal again.
func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worked = ""
}

// refuse notes that a credential was refused. The first time it may be tried again
// at once: one refusal may be the mistake of one machine behind a load balancer.
func (m *memory) refuse(id fingerprint, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worked = ""
	if m.refused == nil || len(m.refused) >= 4*maxCandidates {
		m.refused = map[fingerprint]refusedCredential{}
	}
	r := m.refused[id]
	r.err = err
	if r.times > 0 {
		r.until = time.Now().Add(backoff(r.times - 1))
	}
	r.times++
	m.refused[id] = r
}

// refusedLately returns why a credential is not to be tried now.
func (m *memory) refusedLately(id fingerprint) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.refused[id]; ok && time.Now().Before(r.until) {
		return r.err
	}
	return nil
}
