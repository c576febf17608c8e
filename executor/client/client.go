// Package client is the operator's side of the task-executor's API. It is called
// by the task reconciler, thousands of executors at a time.
//
// A sandbox can listen on its executor's port. So the client speaks to the holder of the
// pod's key alone, and believes nothing all the same: it follows no redirect, uses no
// proxy, reads at most api.MaxAnswerBytes, sets a deadline on every call and makes every
// string valid UTF-8 of bounded length.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/token"
)

// Target is one pod's executor.
type Target struct {
	// PodUID that the executor was told; requests are good for no other.
	PodUID string
	// Address is a host and port.
	Address string
	// Signer for the key that the pod was built with.
	Signer *token.Signer
	// PublicKey of the executor, as the operator has written it onto the pod.
	PublicKey ed25519.PublicKey
}

// PodAddress is the address of the executor in a pod with that IP.
func PodAddress(podIP string) string { return net.JoinHostPort(podIP, strconv.Itoa(api.Port)) }

// Options of a Client; the zero value is fine.
type Options struct {
	// Timeout of a call, beyond what the call waits for. Default 10 s.
	Timeout time.Duration
	// DialTimeout of a connection. Default 3 s.
	DialTimeout time.Duration
}

// Client calls executors. It is safe for concurrent use.
type Client struct {
	executors *dialer
	timeout   time.Duration
	boots     sync.Map // pod UID -> boot id, as last told
}

// New returns a client with connections of its own.
func New(o Options) *Client {
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	o.DialTimeout = cmp.Or(o.DialTimeout, 3*time.Second)
	return &Client{timeout: o.Timeout, executors: &dialer{
		Dialer:    net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second},
		handshake: o.Timeout, idle: map[string]*conn{},
	}}
}

// Forget drops what is remembered of a pod that is gone.
func (c *Client) Forget(podUID string) { c.boots.Delete(podUID) }

// Close closes idle connections.
func (c *Client) Close() { c.executors.close() }

// Start starts a task, or returns the one that an equal request started before.
func (c *Client) Start(ctx context.Context, t Target, id string, request api.TaskRequest) (api.Task, error) {
	var task api.Task
	err := c.call(ctx, &t, http.MethodPut, api.TaskPath(id), 0, request, &task)
	return sanitizeTask(task), err
}

// List returns all tasks as soon as they differ from what was seen at the
// cursor, at the latest after the wait.
func (c *Client) List(ctx context.Context, t Target, since api.Cursor, wait time.Duration) (api.TaskList, error) {
	wait = min(wait, api.MaxWait)
	var list taskList
	err := c.call(ctx, &t, http.MethodGet, listPath(since, wait), wait, nil, &list)
	return list.taken(), err
}

func listPath(since api.Cursor, wait time.Duration) string {
	query := url.Values{"wait": {wait.String()}}
	if since != (api.Cursor{}) {
		query.Set("since", since.String())
	}
	return api.TasksPath + "?" + query.Encode()
}

// Reset stops all tasks and wipes what is known of them. The wait should be the
// longest grace, plus what killing takes.
func (c *Client) Reset(ctx context.Context, t Target, request api.ResetRequest, wait time.Duration) (api.ResetAnswer, error) {
	var answer api.ResetAnswer
	err := c.call(ctx, &t, http.MethodPost, api.ResetPath, wait, request, &answer)
	return answer, err
}

// call makes one request, after one without a body that tells the boot id where none is
// known; and one more if it was refused because of an old one and changes nothing. A
// change for an executor that has restarted is the caller's to repeat: the sandbox may be
// another owner's.
//
// Thousands of polls wait here at a time, and Go gives stacks back by halves: from List to
// the reading of the connection functions leave to others what takes room on the stack.
func (c *Client) call(ctx context.Context, t *Target, method, path string, wait time.Duration, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+wait)
	defer cancel()
	body, err := encode(in)
	if err == nil {
		err = c.meet(ctx, t)
	}
	if err == nil {
		bootID := c.bootID(t)
		err = c.once(ctx, t, bootID, method, path, body, out)
		if method == http.MethodGet && IsUnauthorized(err) && c.bootID(t) != bootID {
			err = c.once(ctx, t, c.bootID(t), method, path, body, out)
		}
	}
	return described(err, t, method, path)
}

func described(err error, t *Target, method, path string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s of %s: %w", method, path, t.Address, err)
}

// encode returns the body of a request.
func encode(in any) ([]byte, error) {
	if in == nil {
		return nil, nil
	}
	body, err := json.Marshal(in)
	if err == nil && len(body) > api.MaxRequestBytes {
		err = fmt.Errorf("the body has %d bytes, more than %d", len(body), api.MaxRequestBytes)
	}
	return body, err
}

// meet learns the boot id where it is not known. Every answer tells it, also one that
// refuses.
func (c *Client) meet(ctx context.Context, t *Target) error {
	if c.bootID(t) != "" {
		return nil
	}
	err := c.once(ctx, t, "", http.MethodGet, api.HealthPath, nil, nil)
	if c.bootID(t) != "" {
		return nil
	}
	return cmp.Or(err, errNoBootID)
}

var errNoBootID = errors.New("the answer names no boot id")

func (c *Client) bootID(t *Target) string {
	known, _ := c.boots.Load(t.PodUID)
	bootID, _ := known.(string)
	return bootID
}

// learn remembers the boot id that an answer told; a reset changes it, too.
func (c *Client) learn(t *Target, told string) {
	if told != "" && told != c.bootID(t) {
		c.boots.Store(t.PodUID, told)
	}
}

// once makes one request and learns the boot id that its answer tells. One that changes
// nothing is made again where a kept connection has ended.
func (c *Client) once(ctx context.Context, t *Target, bootID, method, path string, body []byte, out any) error {
	for {
		request, err := signed(t, bootID, method, path, body)
		if err != nil {
			return err
		}
		got, err := c.executors.do(ctx, t, request)
		c.learn(t, got.bootID)
		switch {
		case err == nil:
			return interpret(got.status, got.body, out)
		case method != http.MethodGet || !errors.Is(err, errKeptEnded):
			return err
		}
	}
}

// signed returns a request as it goes over the connection.
func signed(t *Target, bootID, method, path string, body []byte) ([]byte, error) {
	bearer, err := t.Signer.Sign(token.Request{PodUID: t.PodUID, BootID: bootID, Method: method, Path: path, Body: body})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	request, err := http.NewRequest(method, "https://"+t.PodUID+path, bytes.NewReader(body)) //nolint:noctx // it is only written down
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+bearer)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	var text bytes.Buffer
	err = request.Write(&text)
	return text.Bytes(), err
}
