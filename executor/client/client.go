// Package client is the operator's side of the task executor's API. The task reconciler
// calls it, for thousands of executors at a time.
//
// Whoever answers may not be the executor: a sandbox can listen on its port. So the client
// believes nothing: it follows no redirect, uses no proxy, reads at most
// api.MaxAnswerBytes, sets a deadline on every call and makes every string valid UTF-8 of
// bounded length.
package client

import (
	"bytes"
	"cmp"
	"context"
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
	"github.com/opensandbox/operator/executor/token"
)

// Target is one pod's executor.
type Target struct {
	// PodUID is the UID that the executor was told; requests are good for no other.
	PodUID string
	// Address is a host and port.
	Address string
	// Signer for the key that the pod was built with.
	Signer *token.Signer
}

// PodAddress is the address of the executor in a pod with that IP.
func PodAddress(podIP string) string { return net.JoinHostPort(podIP, strconv.Itoa(api.Port)) }

// Options of a Client; the zero value is fine.
type Options struct {
	// Timeout bounds a call, beyond the time that the call asks to wait. Default 10 s.
	Timeout time.Duration
	// DialTimeout bounds how long a connection takes. Default 3 s.
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
	dialer := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}
	transport := &http.Transport{
		Proxy:                  nil,
		DialContext:            dialer.DialContext,
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

// Forget drops the boot id of a pod that is gone.
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
	var list api.TaskList
	err := c.call(ctx, t, http.MethodGet, api.TasksPath+"?"+query.Encode(), wait, nil, &list)
	return sanitizeList(list), err
}

// Reset stops all tasks and wipes what is known of them. The wait should be the
// longest grace, plus what killing takes.
func (c *Client) Reset(ctx context.Context, t Target, request api.ResetRequest, wait time.Duration) (api.ResetAnswer, error) {
	var answer api.ResetAnswer
	err := c.call(ctx, t, http.MethodPost, api.ResetPath, wait, request, &answer)
	return answer, err
}

// Info returns what the executor found at its start.
func (c *Client) Info(ctx context.Context, t Target) (api.Info, error) {
	var info api.Info
	err := c.call(ctx, t, http.MethodGet, api.InfoPath, 0, nil, &info)
	return sanitizeInfo(info), err
}

// call makes one request. It makes one more with the boot id that the refusal names, if
// none was known, or if an old one was and the request changes nothing. A request that
// changes something is not repeated after the boot id has changed: the sandbox may be
// another owner's by now, which only the caller knows.
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
	bootID := c.bootID(t)
	told, err := c.once(ctx, t, bootID, method, path, body, out)
	c.learn(t, told)
	if told != "" && told != bootID && IsUnauthorized(err) && (bootID == "" || method == http.MethodGet) {
		told, err = c.once(ctx, t, told, method, path, body, out)
		c.learn(t, told)
	}
	if err != nil {
		return fmt.Errorf("%s %s of %s: %w", method, path, t.Address, err)
	}
	return nil
}

func (c *Client) bootID(t Target) string {
	known, _ := c.boots.Load(t.PodUID)
	bootID, _ := known.(string)
	return bootID
}

// learn remembers the boot id that an answer names. A reset changes it, too.
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
	request, err := http.NewRequestWithContext(ctx, method, "http://"+t.Address+path, bytes.NewReader(body))
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
