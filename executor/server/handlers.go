package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/process"
)

// put starts a task. It answers when the command is running or could not be
// started: 201 the first time, 200 afterwards.
func (s *Server) put(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if err := api.ValidateTaskID(id); err != nil {
		invalid(w, err)
		return
	}
	request, err := api.DecodeTaskRequest(grantOf(r).body)
	if err != nil {
		invalid(w, err)
		return
	}
	task, created, err := s.Executor.Start(r.Context(), grantOf(r).bootID, id, request)
	switch {
	case err != nil:
		s.startRefused(w, id, err)
	case created:
		answer(w, http.StatusCreated, task)
	default:
		answer(w, http.StatusOK, task)
	}
}

func (s *Server) startRefused(w http.ResponseWriter, id string, err error) {
	p := api.Problem{Detail: err.Error()}
	switch {
	case errors.Is(err, process.ErrOldBootID):
		s.unauthorized(w)
		return
	case errors.Is(err, process.ErrSpecDiffers):
		p.Status, p.Reason = http.StatusConflict, api.ProblemSpecDiffers
	case errors.Is(err, process.ErrResetting):
		p.Status, p.Reason = http.StatusConflict, api.ProblemResetting
	case errors.Is(err, process.ErrTooManyTasks):
		p.Status, p.Reason = http.StatusTooManyRequests, api.ProblemTooManyTasks
	case errors.Is(err, process.ErrContainerNotFound):
		p.Status, p.Reason = http.StatusServiceUnavailable, api.ProblemContainerNotFound
	default:
		s.Log.Error("A task could not be accepted", "task", id, "error", err)
		p.Status, p.Reason = http.StatusInternalServerError, api.ProblemInternal
	}
	refuse(w, p)
}

// list answers at once if anything has changed since the cursor, else when it
// does or the wait is over.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	since, err := api.ParseCursor(query.Get("since"))
	if err != nil {
		invalid(w, &api.FieldError{Field: "since", Detail: err.Error()})
		return
	}
	wait, err := parseWait(query.Get("wait"))
	if err != nil {
		invalid(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	answer(w, http.StatusOK, s.Executor.Wait(ctx, since))
}

func (s *Server) stopFailed(w http.ResponseWriter, err error) {
	if errors.Is(err, process.ErrRemain) {
		refuse(w, api.Problem{Status: http.StatusInternalServerError, Reason: api.ProblemProcessesRemain, Detail: err.Error()})
		return
	}
	s.internal(w, err)
}

// reset answers when everything is stopped and wiped. It goes on when the client does not
// wait for that.
func (s *Server) reset(w http.ResponseWriter, r *http.Request) {
	var request api.ResetRequest
	if body := grantOf(r).body; len(body) > 0 {
		if err := api.Decode(body, &request); err != nil {
			invalid(w, err)
			return
		}
	}
	if err := request.Validate(); err != nil {
		invalid(w, err)
		return
	}
	if why := s.Info.Recycle.NotRestartable; request.Restart && why != "" {
		refuse(w, api.Problem{Status: http.StatusConflict, Reason: api.ProblemNotRestartable, Detail: why})
		return
	}
	stopped, err := s.Executor.Reset(context.WithoutCancel(r.Context()), grantOf(r).bootID, request.GraceSeconds, request.Restart)
	switch {
	case errors.Is(err, process.ErrOldBootID):
		s.unauthorized(w)
		return
	case errors.Is(err, process.ErrResetting):
		refuse(w, api.Problem{Status: http.StatusConflict, Reason: api.ProblemResetting, Detail: err.Error()})
		return
	case err != nil:
		s.stopFailed(w, err)
		return
	}
	if request.Restart {
		// Before the answer, which promises that the next start cleans.
		if err := s.BeforeRestart(); err != nil {
			s.stopFailed(w, err)
			return
		}
	}
	w.Header().Set(api.HeaderBootID, s.Executor.BootID())
	answer(w, http.StatusOK, api.ResetAnswer{Stopped: stopped, Exiting: request.Restart})
	if request.Restart {
		_ = http.NewResponseController(w).Flush()
		s.Exit()
	}
}

func (s *Server) info(w http.ResponseWriter, _ *http.Request) {
	info := s.Info
	info.BootID = s.Executor.BootID()
	answer(w, http.StatusOK, info)
}

// parseWait reads a duration (25s) and bounds it by api.MaxWait.
func parseWait(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	wait, err := time.ParseDuration(text)
	if err != nil || wait < 0 {
		return 0, &api.FieldError{Field: "wait", Detail: fmt.Sprintf("%.100q is not a duration such as 25s", text)}
	}
	return min(wait, api.MaxWait), nil
}

// invalid answers 400 and names the field.
func invalid(w http.ResponseWriter, err error) {
	p := api.Problem{Status: http.StatusBadRequest, Reason: api.ProblemInvalid, Detail: err.Error()}
	var field *api.FieldError
	if errors.As(err, &field) {
		p.Field, p.Detail = field.Field, field.Detail
	}
	refuse(w, p)
}

func (s *Server) internal(w http.ResponseWriter, err error) {
	s.Log.Error("A request failed", "error", err)
	refuse(w, api.Problem{Status: http.StatusInternalServerError, Reason: api.ProblemInternal})
}
