# shellcheck shell=bash
# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
# bash completion for xendomains-wait-disk(8)

_xendomains_wait_disk() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local equals='' command='' options begun file name i

    # bash splits --config=FILE into three words.
    if [[ $current == = ]]; then
        current='' equals='='
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]} equals='='
    fi
    case $previous$equals in
        --config | --config=)
            compopt -o default
            return
            ;;
        --timeout | --timeout= | --wait=)
            mapfile -t COMPREPLY < <(compgen -W '0 30s 5min 1h' -- "$current")
            return
            ;;
        -b | --boot | --boot=)
            return
            ;;
    esac

    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --config)
                [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
                ((i++))
                ;;
            *)
                command=${COMP_WORDS[i]}
                break
                ;;
        esac
    done
    case $command in
        '') options='--config --help --version -h' ;;
        wait | -*) options='--timeout --verbose --quiet --help -v -q -h' ;;
        list) options='--tree --problems --verbose --json --help -v -h' ;;
        check) options='--reboot --json --nagios --help -h' ;;
        last) options='--boot --list --json --prometheus --help -b -h' ;;
        start) options='--dry-run --wait --verbose --quiet --json --help -v -q -h' ;;
        *) return ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    elif [[ $command == '' ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'wait list check last start' -- "$current")
    elif [[ $command != last ]]; then
        # Never pass file names to compgen -W as a word list: bash expands that like a command line.
        begun=${current#[\"\']}
        begun=${begun//\\/}
        while IFS= read -r file; do
            name=${file##*/}
            [[ $name == "$begun"* ]] || continue
            if [[ $current == [\"\']* ]]; then
                # After an opening quote, offer only names that can be quoted that way.
                [[ $name == *[\"\'\$\`\\!]* ]] || COMPREPLY+=("$name")
            else
                printf -v name %q "$name"
                COMPREPLY+=("$name")
            fi
        done < <(compgen -G '/etc/xen/auto/*'; compgen -G '/var/lib/xen/save/*'
            compgen -G '/etc/libvirt/libxl/autostart/*')
    fi
}

complete -F _xendomains_wait_disk xendomains-wait-disk
