// SPDX-License-Identifier: MIT

package githubapp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// RegisterRequest describes a runner to register.
type RegisterRequest struct {
	Scope      fleet.Scope
	Name       string   // new for each attempt: see RunnerName
	Labels     []string // in full: GitHub adds none by itself
	Group      string   // of an organization, by its exact name; "" is the group Default
	WorkFolder string   // "": _work
}

// Registered is a new registration.
type Registered struct {
	ID     int64
	Config secret.Text // the just-in-time config, encoded as the runner takes it
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func (r RegisterRequest) validate() error {
	var errs []error
	if err := checkScope(r.Scope); err != nil {
		errs = append(errs, err)
	}
	if !namePattern.MatchString(r.Name) {
		errs = append(errs, errors.New("the name must be 1 to 64 letters, digits, dots, dashes and underscores"))
	}
	if len(r.Labels) == 0 || len(r.Labels) > 100 {
		errs = append(errs, fmt.Errorf("%d labels: GitHub takes 1 to 100", len(r.Labels)))
	}
	for _, l := range r.Labels {
		if l == "" || len(l) > 256 {
			errs = append(errs, fmt.Errorf("label %.20q: a label has 1 to 256 bytes", l))
		}
	}
	return errors.Join(errs...)
}

// Register registers an ephemeral runner. It asks GitHub once and never repeats a
// request that may have been granted. Only an error that is ErrUncertain leaves
// open whether a registration exists; with any other there is none.
func (a *App) Register(ctx context.Context, r RegisterRequest) (Registered, error) {
	ctx = prefer(ctx, PriorityMint)
	what := fmt.Sprintf("register runner %s at %s", r.Name, r.Scope)
	if err := r.validate(); err != nil {
		return Registered{}, fmt.Errorf("%s: %w", what, err)
	}
	made, err := a.inGroup(ctx, what, r)
	if err != nil {
		return Registered{}, err
	}
	id, config := made.GetRunner().GetID(), made.GetEncodedJITConfig()
	if id <= 0 || config == "" {
		return Registered{}, fmt.Errorf("%s: %w: GitHub's answer lacks the runner's id or its config", what, ErrUncertain)
	}
	if err := CheckConfig(config, r.Name); err != nil {
		return Registered{}, a.takeBack(ctx, what, r.Scope, id, err)
	}
	return Registered{ID: id, Config: secret.New(config)}, nil
}

// inGroup makes the request with the id of the group, and once more if the group of that
// name has become another: GitHub has refused the first then.
func (a *App) inGroup(ctx context.Context, what string, r RegisterRequest) (*github.JITRunnerConfig, error) {
	_, known := a.cachedGroup(groupKey(r.Scope, r.Group))
	for {
		group, err := a.groupID(ctx, r.Scope, r.Group)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		made, err := a.generate(ctx, what, r, group)
		if err == nil {
			return made, nil
		}
		err = a.registerError(what, r, group, err)
		if !errors.Is(err, ErrGroup) || !known {
			return nil, err
		}
		known = false
		if again, lookErr := a.groupID(ctx, r.Scope, r.Group); lookErr != nil || again == group {
			return nil, err
		}
	}
}

// generate makes the one request. What comes back as an error wraps ErrUncertain
// unless it is certain that the request did nothing.
func (a *App) generate(ctx context.Context, what string, r RegisterRequest, group int64) (*github.JITRunnerConfig, error) {
	body := &github.GenerateJITConfigRequest{
		Name: r.Name, RunnerGroupID: group, Labels: r.Labels, WorkFolder: new(cmp.Or(r.WorkFolder, "_work")),
	}
	var made *github.JITRunnerConfig
	var mark *sendMark
	err := a.at(ctx, r.Scope, what, a.mintTimeout, func(ctx context.Context, in *installation) (err error) {
		ctx, mark = withSendMark(ctx)
		if r.Scope.Repo == "" {
			made, _, err = in.client.Actions.GenerateOrgJITConfig(ctx, r.Scope.Owner, body)
		} else {
			made, _, err = in.client.Actions.GenerateRepoJITConfig(ctx, r.Scope.Owner, r.Scope.Repo, body)
		}
		return err
	})
	switch {
	case err == nil:
		return made, nil
	case mark == nil || !mark.flag.Load():
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w", ErrUncertain, err)
	}
}

// registerError names the kind of a failed registration.
func (a *App) registerError(what string, r RegisterRequest, group int64, err error) error {
	status, token := statusOf(err)
	switch {
	case errors.Is(err, ErrUncertain), token:
		return err
	case status == http.StatusConflict:
		return fmt.Errorf("%w: %w", ErrNameTaken, err)
	case status == http.StatusNotFound && a.tooOld():
		return fmt.Errorf("%s: %w: this GitHub Enterprise Server is %s, and just-in-time runners came with 3.10: upgrade the server", what, ErrRefused, a.enterprise())
	case group != defaultGroup && (status == http.StatusForbidden || status == http.StatusNotFound):
		a.forgetGroup(r.Scope, r.Group) // it may be a new one of the same name now
		return fmt.Errorf("%w: check that group %q exists, is not one of GitHub's own and that the App may use it: %w", ErrGroup, r.Group, err)
	case status == http.StatusForbidden || status == http.StatusNotFound:
		return fmt.Errorf("%s: check the App's permissions (organization: Self-hosted runners, repository: Administration; each write): %w", what, err)
	default:
		return err
	}
}

// takeBack deletes a registration that must not be used. It goes on if the
// caller gives up: nobody else knows the id.
func (a *App) takeBack(ctx context.Context, what string, scope fleet.Scope, id int64, why error) error {
	if err := a.DeleteRunner(context.WithoutCancel(ctx), scope, id); err != nil {
		return fmt.Errorf("%s: %w, and could not be taken back: %w: %w", what, why, ErrUncertain, err)
	}
	return fmt.Errorf("%s: %w; the registration is deleted", what, why)
}
