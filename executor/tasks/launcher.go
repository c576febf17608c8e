package tasks

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/link"
)

// maxMessage is more than what a launcher sends at a time. It may be no launcher.
const maxMessage = 64 << 10

// launcher is the one that is served. The goroutine of Serve alone receives from it.
type launcher struct {
	conn    *link.Conn
	lost    chan struct{} // closed when the connection has ended
	answers chan link.Outcome
	asking  sync.Mutex // one question at a time
}

// ask sends a request and waits for its answer. There may be no launcher. If needless is
// closed before its turn comes, it asks nothing.
func (l *launcher) ask(kind link.Kind, v any, patience time.Duration, needless <-chan struct{}) error {
	if l == nil {
		return ErrNoLauncher
	}
	l.asking.Lock()
	defer l.asking.Unlock()
	select {
	case <-needless:
		return nil
	default:
	}
	select {
	case <-l.answers: // of a question that was given up
	default:
	}
	if err := l.conn.Send(kind, v); err != nil {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case o := <-l.answers:
		if o.Problem != "" {
			return errors.New(lastBytes(o.Problem))
		}
		return nil
	case <-l.lost:
		return errors.New("the launcher was lost")
	case <-timer.C:
		return fmt.Errorf("the launcher has not answered within %v", patience)
	}
}

// offer lets a launcher connect, with a new secret. Nobody is connected.
func (e *Executor) offer() error {
	o := e.Offer
	o.Secret = newID()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	if err := link.WriteOffer(e.OfferDir, o); err != nil {
		return err
	}
	e.secret = o.Secret
	return nil
}

// Serve serves a launcher until its connection ends. Who does not know the secret of the
// offer that stands is sent away.
func (e *Executor) Serve(conn net.Conn) {
	defer conn.Close()
	c, secret, err := link.Accept(conn)
	if err != nil {
		e.Log.Debug("Something connected that is no launcher", "error", err)
		return
	}
	l := &launcher{conn: c, lost: make(chan struct{}), answers: make(chan link.Outcome, 1)}
	if !e.take(l, secret) {
		e.Log.Debug("Something connected that is not the launcher: it does not know the secret")
		return
	}
	e.Log.Info("The launcher is there")
	if c.Welcome() == nil {
		err = e.receive(l)
	}
	e.lose(l, err)
}

// take spends the secret.
func (e *Executor) take(l *launcher, secret string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.launcher != nil || e.secret == "" || subtle.ConstantTimeCompare([]byte(secret), []byte(e.secret)) != 1 {
		return false
	}
	if err := link.WithdrawOffer(e.OfferDir); err != nil {
		e.Log.Error("The offer to connect remains, although nobody is taken by it any more", "error", err)
	}
	e.launcher, e.secret = l, ""
	return true
}

func (e *Executor) receive(l *launcher) error {
	for {
		kind, body, err := l.conn.Receive(maxMessage)
		if err == nil {
			err = e.handle(l, kind, body)
		}
		if err != nil {
			return err
		}
	}
}

// handle takes in one message. An error ends the connection: this is no launcher of ours.
func (e *Executor) handle(l *launcher, kind link.Kind, body []byte) error {
	t := e.taskOf(l)
	switch kind {
	case link.KindStdout, link.KindStderr, link.KindPreStartStdout, link.KindPreStartStderr, link.KindPostStopStdout, link.KindPostStopStderr:
		if t != nil && t.outputs[kind] != nil {
			t.outputs[kind].write(body)
		}
	case link.KindStarted:
		if t != nil {
			e.runs(t)
		}
	case link.KindFailed:
		var f link.Failure
		if err := json.Unmarshal(body, &f); err != nil {
			return err
		}
		if t != nil {
			e.failed(t, f)
		}
	case link.KindExited:
		var exit link.Exit
		if err := json.Unmarshal(body, &exit); err != nil {
			return err
		}
		if t != nil && !t.starting() {
			e.exited(t, exit)
		}
	case link.KindGone, link.KindCleaned:
		var o link.Outcome
		if err := json.Unmarshal(body, &o); err != nil {
			return err
		}
		select {
		case l.answers <- o:
		default: // nobody has asked
		}
	default:
		return fmt.Errorf("a message of kind %d", kind)
	}
	return nil
}

// taskOf returns the task that the launcher runs or has run, or nil.
func (e *Executor) taskOf(l *launcher) *task {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.task == nil || e.task.launcher != l {
		return nil
	}
	return e.task
}

// starting says that it is not known yet how the task has started. There may be none.
func (t *task) starting() bool {
	if t == nil {
		return false
	}
	select {
	case <-t.started:
		return false
	default:
		return true
	}
}

// lose ends what the launcher ran, and offers the next one to connect.
func (e *Executor) lose(l *launcher, why error) {
	l.conn.Close()
	e.mu.Lock()
	e.launcher = nil // from here on no task is given to it
	e.mu.Unlock()
	t := e.taskOf(l)
	if t != nil {
		e.mu.Lock()
		e.stray = true
		e.mu.Unlock()
		e.lost(t)
	}
	close(l.lost)
	e.Log.Warn("The launcher was lost", "error", why)
	if err := e.offer(); err != nil {
		e.Log.Error("No launcher can connect", "error", err)
	}
}
