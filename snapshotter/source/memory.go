package source

import (
	"sync"
	"time"
)

// memory is what was learnt about the credentials for one repository. It outlives
// the connections to the registry, which are made anew after a refusal.
type memory struct {
	mu      sync.Mutex
	worked  success // the last one
	refused map[fingerprint]refusedCredential
}

// success is a credential that worked, and the place that knew it.
type success struct {
	origin string
	id     fingerprint
}

// refusedCredential keeps wrong credentials from being tried for every read.
type refusedCredential struct {
	err   error
	times int
	until time.Time
}

func (m *memory) success() success {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.worked
}

// accept notes that a credential is good.
func (m *memory) accept(c choice) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worked, m.refused = success{c.origin, c.fingerprint()}, nil
}

// forget makes all credentials equal again.
func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worked = success{}
}

// refuse notes that a credential was refused. The first time it may be tried again
// at once: one refusal may be the mistake of one machine behind a load balancer.
func (m *memory) refuse(id fingerprint, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worked = success{}
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
