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
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
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

const (
	// bufferSize of a connection, each way: there may be thousands of connections.
	bufferSize = 2 << 10
	// maxIdleConns over all executors.
	maxIdleConns = 8192
)

// Client calls executors. It is safe for concurrent use.
type Client struct {
	http    *http.Client
	timeout time.Duration
	boots   sync.Map // pod UID -> boot id, as last told
}

// New returns a client with a transport of its own.
func New(o Options) *Client {
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	o.DialTimeout = cmp.Or(o.DialTimeout, 3*time.Second)
	dialer := &pinning{Dialer: net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}, handshake: o.Timeout}
	transport := &http.Transport{
		Proxy:                  nil,
		DialTLSContext:         dialer.dial,
		DisableCompression:     true,
		ReadBufferSize:         bufferSize,
		WriteBufferSize:        bufferSize,
		MaxIdleConns:           maxIdleConns,
		MaxIdleConnsPerHost:    2, // one for the poll, one for calls
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 4 << 10,
		ExpectContinueTimeout:  time.Second,
	}
	return &Client{
		timeout: o.Timeout,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// pinning dials the executor that the request is for. The requests name a host by the
// pod's UID, so that no connection of one pod is used for another of its address.
type pinning struct {
	net.Dialer
	handshake time.Duration // how long it may take
}

type targetKey struct{}

func (d *pinning) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	t, _ := ctx.Value(targetKey{}).(Target)
	plain, err := d.DialContext(ctx, network, t.Address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(plain, link.PinnedTo(t.PublicKey))
	ctx, cancel := context.WithTimeout(ctx, d.handshake)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS: %w", err), plain.Close())
	}
	return conn, nil
}

// Forget drops what is remembered of a pod that is gone.
func (c *Client) Forget(podUID string) { c.boots.Delete(podUID) }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Start starts a task, or returns the one that an equal request started before.
func (c *Client) Start(ctx context.Context, t Target, id string, request api.TaskRequest) (api.Task, error) {
	var task api.Task
	err := c.call(ctx, t, http.MethodPut, api.TaskPath(id), 0, request, &task)
	return sanitizeTask(task), err
}

// List returns all tasks as soon as they differ from what was seen at the
// cursor, at the latest after the wait.
func (c *Client) List(ctx context.Context, t Target, since api.Cursor, wait time.Duration) (api.TaskList, error) {
	wait = min(wait, api.MaxWait)
	query := url.Values{"wait": {wait.String()}}
	if since != (api.Cursor{}) {
		query.Set("since", since.String())
	}
	var list taskList
	err := c.call(ctx, t, http.MethodGet, api.TasksPath+"?"+query.Encode(), wait, nil, &list)
	return api.TaskList{BootID: plausibleBootID(list.BootID), Version: list.Version, Tasks: list.Tasks}, err
}

// Reset stops all tasks and wipes what is known of them. The wait should be the
// longest grace, plus what killing takes.
func (c *Client) Reset(ctx context.Context, t Target, request api.ResetRequest, wait time.Duration) (api.ResetAnswer, error) {
	var answer api.ResetAnswer
	err := c.call(ctx, t, http.MethodPost, api.ResetPath, wait, request, &answer)
	return answer, err
}

// call makes one request, after one without a body that tells the boot id where none is
// known; and one more if it was refused because of an old one and changes nothing. A
// change for an executor that has restarted is the caller's to repeat: the sandbox may be
// another owner's.
func (c *Client) call(ctx context.Context, t Target, method, path string, wait time.Duration, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+wait)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		if len(body) > api.MaxRequestBytes {
			return fmt.Errorf("%s %s: the body has %d bytes, more than %d", method, path, len(body), api.MaxRequestBytes)
		}
	}
	if c.bootID(t) == "" {
		// Every answer tells it, also one that refuses.
		told, err := c.once(ctx, t, "", http.MethodGet, api.HealthPath, nil, nil)
		if told == "" {
			return fmt.Errorf("GET %s of %s: %w", api.HealthPath, t.Address, cmp.Or(err, errNoBootID))
		}
		c.learn(t, told)
	}
	bootID := c.bootID(t)
	told, err := c.once(ctx, t, bootID, method, path, body, out)
	c.learn(t, told)
	if told != "" && told != bootID && IsUnauthorized(err) && method == http.MethodGet {
		told, err = c.once(ctx, t, told, method, path, body, out)
		c.learn(t, told)
	}
	if err != nil {
		return fmt.Errorf("%s %s of %s: %w", method, path, t.Address, err)
	}
	return nil
}

var errNoBootID = errors.New("the answer names no boot id")

func (c *Client) bootID(t Target) string {
	known, _ := c.boots.Load(t.PodUID)
	bootID, _ := known.(string)
	return bootID
}

// learn remembers the boot id that an answer told; a reset changes it, too.
func (c *Client) learn(t Target, told string) {
	if told != "" && told != c.bootID(t) {
		c.boots.Store(t.PodUID, told)
	}
}

func (c *Client) once(ctx context.Context, t Target, bootID, method, path string, body []byte, out any) (told string, err error) {
	bearer, err := t.Signer.Sign(token.Request{PodUID: t.PodUID, BootID: bootID, Method: method, Path: path, Body: body})
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	ctx = context.WithValue(ctx, targetKey{}, t)
	request, err := http.NewRequestWithContext(ctx, method, "https://"+t.PodUID+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+bearer)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return "", unwrapURL(err)
	}
	defer response.Body.Close()
	told = plausibleBootID(response.Header.Get(api.HeaderBootID))
	data, err := io.ReadAll(io.LimitReader(response.Body, api.MaxAnswerBytes+1))
	if err != nil {
		return told, fmt.Errorf("read the answer: %w", err)
	}
	if len(data) > api.MaxAnswerBytes {
		return told, fmt.Errorf("the answer has more than %d bytes", api.MaxAnswerBytes)
	}
	return told, interpret(response.StatusCode, data, out)
}

// unwrapURL drops the URL that url.Error repeats.
func unwrapURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
