package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
)

// plugins are kubelet's credential provider plugins, as a configuration file
// names them. The file is read again when it has changed; while it cannot be
// read, what it said before holds.
type plugins struct {
	config, bin string
	log         *slog.Logger
	report      func(what string, err error)

	mu     sync.Mutex
	closed bool
	ids    []fileID // of the files that list came from
	list   []*plugin
	err    error // of the last reading
}

// candidates are the plugins that are configured for n.
func (p *plugins) candidates(n imageName) []candidate {
	if p == nil || p.config == "" {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.load()
	var list []candidate
	if p.err != nil {
		list = append(list, known(p.config, nil, p.err))
	}
	for _, one := range p.list {
		if one.matches(n) {
			list = append(list, candidate{
				origin:  one.origin(),
				get:     func(ctx context.Context) ([]Credential, error) { return one.credentials(ctx, n) },
				refused: func(c Credential) { one.doubt(n, c) },
			})
		}
	}
	return list
}

// load reads the configuration if it has changed.
func (p *plugins) load() {
	files, ids, err := pluginFiles(p.config)
	if err == nil && p.ids != nil && slices.Equal(ids, p.ids) {
		return // as before, good or bad
	}
	var list []pluginConfig
	if err == nil {
		list, err = readPluginConfig(files)
	}
	p.ids = ids
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.replace(nil) // withdrawn; a change by rename never looks like this
		fallthrough
	case err != nil:
		p.err = fmt.Errorf("credential providers: %w", err)
	default:
		p.err = nil
		p.replace(list)
	}
	p.report(p.config, p.err)
}

// replace makes list the plugins. Those that are configured as before go on with
// what they know.
func (p *plugins) replace(list []pluginConfig) {
	var now []*plugin
	for _, c := range list {
		one := newPlugin(c, filepath.Join(p.bin, c.Name), p.log, p.report)
		for _, old := range p.list {
			if old.same(one) {
				one.close()
				one = old
			}
		}
		now = append(now, one)
	}
	for _, old := range p.list {
		if !slices.Contains(now, old) {
			old.close()
		}
	}
	p.list = now
}

// close ends what the plugins do in the background, and waits for it.
func (p *plugins) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.replace(nil)
}
