package source

import (
	"sync"
	"time"
)

// LastError is the newest trouble with one repository.
type LastError struct {
	// Host is the registry's, with its port; empty for trouble with a source of
	// credentials, which Repo then names: a file or a plugin.
	Host string `json:"host,omitempty"`
	Repo string `json:"repo"`
	// Message is one line without anything secret.
	Message string `json:"message"`
	// Since is when this trouble began, Last when it was seen the last time.
	Since time.Time `json:"since"`
	Last  time.Time `json:"last"`
	// Count is how often it was seen.
	Count int `json:"count"`
}

// LastErrors keeps the newest errors, one for each repository, until that works
// again. Its method Report fits Options.Report. It may be used in parallel.
type LastErrors struct {
	most int

	mu   sync.Mutex
	list []LastError // the newest last
}

// NewLastErrors returns a LastErrors that keeps at most n.
func NewLastErrors(n int) *LastErrors { return &LastErrors{most: max(1, n)} }

// Report notes err, or with nil that all is well again.
func (l *LastErrors) Report(host, repo string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var e LastError
	for i, old := range l.list {
		if old.Host == host && old.Repo == repo {
			e = old
			l.list = append(l.list[:i], l.list[i+1:]...)
			break
		}
	}
	if err == nil {
		return
	}
	now := time.Now()
	if e.Count == 0 {
		e.Since = now
	}
	e.Host, e.Repo, e.Message, e.Last = host, repo, err.Error(), now
	e.Count++
	if l.list = append(l.list, e); len(l.list) > l.most {
		l.list = l.list[1:]
	}
}

// List returns the errors, the newest first.
func (l *LastErrors) List() []LastError {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]LastError, 0, len(l.list))
	for i := len(l.list) - 1; i >= 0; i-- {
		out = append(out, l.list[i])
	}
	return out
}
