package kubeapi

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// tokenFile is a file with a token, which kubelet replaces before it expires. It
// is read for each request: client-go reads it each minute, and a refusal of the
// old token would look like the end of our rights.
type tokenFile struct {
	path string // "" for none

	mu   sync.Mutex
	last string
}

// read returns the token, the last one if the file is gone: a pod's files may go
// before its processes do.
func (t *tokenFile) read() (string, error) {
	if t.path == "" {
		return "", nil
	}
	b, err := os.ReadFile(t.path)
	token := strings.TrimSpace(string(b))
	if err == nil && token == "" {
		err = errors.New("it is empty")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.last = token
	case t.last == "":
		return "", fmt.Errorf("the token %s: %w", t.path, err)
	}
	return t.last, nil
}
