package conversion

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Task is one conversion to run.
type Task struct {
	Key types.NamespacedName
	UID types.UID
	// Registry is whose turn it takes.
	Registry types.NamespacedName
	// Tag keeps two conversions of the same tag from running at once.
	Tag string
	// Urgent tasks, which somebody pushed just now, go before those that a scan
	// found.
	Urgent bool
}

// State is how far a task is.
type State int

// The states.
const (
	Absent State = iota
	Waiting
	Running
	Done
)

// ErrSuperseded is the cause of cancelling a task whose tag was pushed again.
var ErrSuperseded = errors.New("the tag was pushed again")

// Pool runs tasks: a bounded number at once, registries in turn, so that ten
// thousand tags of one do not keep a single push to another waiting. It is
// memory only: what is lost with the process is submitted again from the objects.
type Pool struct {
	// Workers is how many tasks run at once, PerRegistry how many of one registry.
	Workers, PerRegistry int
	// Run does the work. It must return soon after its context ends.
	Run func(context.Context, Task) Outcome
	// Moved is called when a task begins to run and when it is done. It may block
	// for a moment, and not after the context of Start has ended.
	Moved func(context.Context, Task)

	mu      sync.Mutex
	tasks   map[types.UID]*entry
	lanes   map[types.NamespacedName]*lane
	turn    []types.NamespacedName // registries that have tasks waiting, the next one first
	tags    map[string]types.UID   // tags that a task is running for
	running int
	start   func(*entry)
}

type entry struct {
	task    Task
	state   State
	since   time.Time
	cancel  context.CancelCauseFunc
	outcome Outcome
}

// lane has the tasks of one registry.
type lane struct {
	urgent, rest []*entry
	running      int
	inTurn       bool // it stands in Pool.turn
}

func (l *lane) waiting() int { return len(l.urgent) + len(l.rest) }

// Start runs tasks until the context ends, and then waits for those that run.
func (p *Pool) Start(ctx context.Context) error {
	var wg sync.WaitGroup
	p.mu.Lock()
	p.start = func(e *entry) {
		var one context.Context
		one, e.cancel = context.WithCancelCause(ctx)
		wg.Go(func() { p.work(ctx, one, e) })
	}
	p.dispatch()
	p.mu.Unlock()
	<-ctx.Done()
	p.mu.Lock()
	p.start = nil
	p.mu.Unlock()
	wg.Wait()
	return nil
}

// Submit takes a task, unless it has it already, and says how far it is.
func (p *Pool) Submit(t Task) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.init()
	if e := p.tasks[t.UID]; e != nil {
		return e.state
	}
	e := &entry{task: t, state: Waiting, since: time.Now()}
	p.tasks[t.UID] = e
	l := p.lanes[t.Registry]
	if l == nil {
		l = &lane{}
		p.lanes[t.Registry] = l
	}
	if !l.inTurn {
		l.inTurn = true
		p.turn = append(p.turn, t.Registry)
	}
	if t.Urgent {
		l.urgent = append(l.urgent, e)
	} else {
		l.rest = append(l.rest, e)
	}
	p.dispatch()
	return e.state
}

func (p *Pool) init() {
	if p.tasks == nil {
		p.tasks, p.lanes, p.tags = map[types.UID]*entry{}, map[types.NamespacedName]*lane{}, map[string]types.UID{}
	}
}

// Take returns how far a task is, and the outcome of one that is done, which is
// then forgotten.
func (p *Pool) Take(uid types.UID) (State, Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.tasks[uid]
	switch {
	case e == nil:
		return Absent, Outcome{}
	case e.state == Done:
		delete(p.tasks, uid)
	}
	return e.state, e.outcome
}

// Outcome returns that of a task that is done, which stays until it is taken.
func (p *Pool) Outcome(uid types.UID) (Outcome, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.tasks[uid]
	if e == nil || e.state != Done {
		return Outcome{}, false
	}
	return e.outcome, true
}

// State says how far a task is.
func (p *Pool) State(uid types.UID) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.tasks[uid]; e != nil {
		return e.state
	}
	return Absent
}

// Cancel ends a task for a cause: one that runs is told by its context and
// becomes Done as usual, one that waits is forgotten.
func (p *Pool) Cancel(uid types.UID, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.tasks[uid]
	switch {
	case e == nil:
	case e.state == Running:
		e.cancel(cause)
	case e.state == Done:
		delete(p.tasks, uid)
	default:
		delete(p.tasks, uid)
		p.lanes[e.task.Registry].drop(e)
	}
}

// Counts says how many tasks wait and run.
func (p *Pool) Counts() (waiting, running int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lanes {
		waiting += l.waiting()
	}
	return waiting, p.running
}

func (l *lane) drop(e *entry) {
	for _, q := range []*[]*entry{&l.urgent, &l.rest} {
		for i := range *q {
			if (*q)[i] == e {
				*q = append((*q)[:i:i], (*q)[i+1:]...)
				return
			}
		}
	}
}

// dispatch starts what can be started; the caller holds the lock.
func (p *Pool) dispatch() {
	if p.start == nil {
		return
	}
	for skipped := 0; p.running < p.Workers && skipped < len(p.turn); {
		key := p.turn[0]
		p.turn = p.turn[1:]
		l := p.lanes[key]
		e := p.next(l)
		if l.inTurn = l.waiting() > 0; l.inTurn {
			p.turn = append(p.turn, key)
		}
		if e == nil {
			p.sweep(key)
			skipped++
			continue
		}
		skipped = 0
		e.state, e.since = Running, time.Now()
		p.running++
		l.running++
		p.tags[e.task.Tag] = e.task.UID
		p.start(e)
	}
}

// sweep drops the lane of a registry that has nothing to do.
func (p *Pool) sweep(key types.NamespacedName) {
	if l := p.lanes[key]; l != nil && l.running == 0 && !l.inTurn {
		delete(p.lanes, key)
	}
}

// next takes the first task of a lane that may run now, nil for none.
func (p *Pool) next(l *lane) *entry {
	if l.running >= p.PerRegistry {
		return nil
	}
	for _, q := range []*[]*entry{&l.urgent, &l.rest} {
		for i, e := range *q {
			if _, busy := p.tags[e.task.Tag]; !busy {
				if i == 0 {
					*q = (*q)[1:]
				} else {
					*q = append((*q)[:i:i], (*q)[i+1:]...)
				}
				return e
			}
		}
	}
	return nil
}

// work runs one task. ctx is its own, all that of every task.
func (p *Pool) work(all, ctx context.Context, e *entry) {
	p.Moved(all, e.task)
	out := p.Run(ctx, e.task)
	if out.Cause == nil {
		out.Cause = context.Cause(ctx)
	}
	e.cancel(nil)
	p.mu.Lock()
	e.state, e.outcome = Done, out
	delete(p.tags, e.task.Tag)
	p.running--
	p.lanes[e.task.Registry].running--
	p.dispatch()
	p.sweep(e.task.Registry)
	p.mu.Unlock()
	p.Moved(all, e.task)
}
